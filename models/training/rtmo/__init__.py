"""RTMO (Lu et al. 2023, arXiv:2312.07526) in PyTorch, at its real size: the graph that the agent is made for."""
