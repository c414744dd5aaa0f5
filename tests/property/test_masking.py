"""Masking: whatever a secret and the words around it look like, it is not in the text that people read."""

from __future__ import annotations

import string

from hypothesis import given
from hypothesis import strategies as st

from agent.masking import MASK, mask_text

KEYS = st.sampled_from(
    ["password", "passphrase", "secret", "token", "access_token", "api_key", "fleet-token", "X-Auth-Token"]
)
PLACES = st.sampled_from(["", "/", "/etc/recognizer/", "newdata/box-1.", "update.token_file: ", "agent.yaml:4:mqtt."])
# No word of a message that is let through has a digit.
SECRETS = st.builds(
    lambda before, digit, after: before + digit + after,
    st.text(string.ascii_letters + string.digits + "-_.~+/", max_size=30),
    st.sampled_from(string.digits),
    st.text(string.ascii_letters + string.digits + "-_.~+/", min_size=4, max_size=30),
)
TROUBLES = st.sampled_from(
    ["others can read or write it (mode 0644)", "No such file or directory", "not a file", "not set", "holds no token"]
)


@given(PLACES, KEYS, st.sampled_from([": ", ":", "=", " = "]), SECRETS, st.sampled_from(["", " is wrong", ", n: 1"]))
def test_a_secret_is_masked_wherever_it_stands(place: str, key: str, between: str, secret: str, after: str) -> None:
    assert mask_text(f"{place}{key}{between}{secret}{after}") == f"{place}{key}{between}{MASK}{after}"


@given(PLACES, KEYS, TROUBLES, KEYS, SECRETS)
def test_what_is_said_of_one_hides_no_other(place: str, file: str, trouble: str, key: str, secret: str) -> None:
    said = f"{place}{file}: {trouble}"
    assert mask_text(said) == said
    assert mask_text(f"{said}; {key}: {secret}") == f"{said}; {key}: {MASK}"


@given(
    PLACES, KEYS, st.sampled_from(["others", "it", "larger", "not", "holds", "no", "is", "permission", "what"]), SECRETS
)
def test_one_word_of_a_message_opens_nothing(place: str, key: str, word: str, secret: str) -> None:
    assert mask_text(f"{place}{key}: {word}") == f"{place}{key}: {MASK}"
    assert mask_text(f"{place}{key}: {word}{secret}") == f"{place}{key}: {MASK}"
