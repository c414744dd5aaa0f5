// Rollouts: how far each group is, and what may be done.

import { get, post } from "./api.js";
import { button, close, definitions, dialog, element, plural, relative, since, table } from "./parts.js";

const LOOKS = {
  draft: "warn", ready: "soft", running: "busy", paused: "warn", rolling_back: "bad", aborted: "soft", finished: "good", rolled_back: "bad",
  scheduled: "soft", approved: "soft", met: "good", accepted: "warn", failed: "bad", withdrawn: "bad",
};
const ENDED = ["aborted", "finished", "rolled_back"];
const SEGMENTS = ["succeeded", "returned", "open", "ending", "returning", "failed", "stuck", "left"];
const WORDS = {
  succeeded: "well", open: "under way", ending: "being cancelled", failed: "failed", left: "cancelled", returning: "going back", returned: "went back", stuck: "could not go back",
  waiting: "waiting", rooted: "no way back",
};

const words = (state) => state.replaceAll("_", " ");

export function pill(state) {
  return element("span", `pill ${LOOKS[state] ?? "soft"}`, words(state));
}

function counts(group) {
  const order = ["succeeded", "open", "ending", "failed", "returning", "returned", "stuck", "left", "waiting"];
  const told = order.filter((name) => group.counts[name]).map((name) => `${group.counts[name]} ${WORDS[name]}`);
  return told.join(", ") || "no devices yet";
}

function bar(rollout, group) {
  const made = element("div", "bar");
  made.setAttribute("role", "img");
  made.setAttribute("aria-label", `${group.name}: ${counts(group)}`);
  for (const name of SEGMENTS) {
    if (!group.counts[name]) continue;
    const part = element("i", name);
    part.style.flexBasis = `${(100 * group.counts[name]) / group.devices}%`;
    part.title = `${group.counts[name]} ${WORDS[name]}`;
    made.append(part);
  }
  const judged = group.devices - group.counts.left;
  if (!ENDED.includes(rollout.state) && ["running", "scheduled", "approved"].includes(group.state) && group.needed < judged) {
    const mark = element("b", "");
    mark.style.left = `${(100 * group.needed) / group.devices}%`;
    mark.title = `${group.needed} must be well before the next group begins`;
    made.append(mark);
  }
  return made;
}

/** A group's state as of its rollout's: one that has ended has no group that runs or will. */
function stage(rollout, group) {
  if (!ENDED.includes(rollout.state)) return pill(group.state);
  if (["scheduled", "approved"].includes(group.state)) return element("span", "pill soft", "not begun");
  return group.state === "running" ? element("span", "pill soft", "stopped") : pill(group.state);
}

function groupLine(rollout, group, plan) {
  const size = group.devices ? plural(group.devices, "device") : plan.percent ? `${plan.percent} %` : plan.count ? plural(plan.count, "device") : "what is left";
  const limit = rollout.state === "running" && group.state === "running" ? `, stops at ${group.limit} failed` : "";
  const line = element("div", "group",
    element("div", "name", element("strong", "", group.name), stage(rollout, group)),
    bar(rollout, group),
    element("span", "soft", group.devices ? `${counts(group)} of ${size}${limit}` : size),
  );
  line.dataset.group = group.name;
  return line;
}

function why(rollout) {
  const told = [];
  if (rollout.reason) told.push(rollout.reason);
  if (rollout.waits_for_approval) told.push(`group ${rollout.waits_for_approval} waits for approval`);
  if (rollout.next && new Date(rollout.next) > Date.now()) told.push(`goes on ${relative(rollout.next)}`);
  if (told.length === 0) return null;
  return element("p", ["paused", "rolling_back", "rolled_back"].includes(rollout.state) ? LOOKS[rollout.state] : "", told.join("; "));
}

function facts(rollout) {
  const slot = rollout.release.slot;
  return element("p", "facts",
    element("span", "", `${rollout.release.name} ${rollout.release.version} for ${slot}`),
    rollout.filter ? element("code", "", rollout.filter) : element("span", "", "all devices"),
    element("span", "", `by ${rollout.created_by}, `, rollout.started ? "started " : "created ", since(rollout.started ?? rollout.created)),
    rollout.ended ? element("span", "", "ended ", since(rollout.ended)) : null,
  );
}

/** Whether devices of a group still run the release after others went back. */
function keepsIt(group) {
  return group.counts.succeeded > 0 && !["failed", "withdrawn"].includes(group.state);
}

function buttons(rollout, user, act) {
  if (user.role === "viewer") return null;
  const failed = rollout.groups.find((group) => group.state === "failed");
  const offered = [];
  if (rollout.waits_for_approval && rollout.created_by !== user.name) offered.push(button("Approve", "main", () => act("approve")));
  if (rollout.state === "ready") offered.push(button("Start", "main", () => begin(rollout, act)));
  if (rollout.state === "running") offered.push(button("Pause", "", () => act("pause")));
  if (rollout.state === "paused") offered.push(button("Resume", "", () => (failed ? accept(failed, act) : act("resume"))));
  if (!ENDED.includes(rollout.state)) offered.push(button("Abort", "danger", () => abort(rollout, act)));
  if (["finished", "aborted"].includes(rollout.state) || (rollout.state === "rolled_back" && rollout.groups.some(keepsIt))) offered.push(button("Roll back", "danger", () => rollBack(rollout, act)));
  return element("div", "buttons", ...offered);
}

/** Those of the matching devices that get nothing. found: a preview. */
export function outside(found) {
  const told = [[found.already, "it already"], [found.newer, "something newer"]].filter(([number]) => number);
  return told.map(([number, what]) => `${number} run${number === 1 ? "s" : ""} ${what}`);
}

/** Those that name the slots they have, and not this one. */
export function slotless(found) {
  return found.lacking ? [`${found.lacking} of these devices report${found.lacking === 1 ? "s" : ""} no such slot`] : [];
}

/** What keeps it from starting now. */
export function hindrances(found) {
  return Object.entries(found.busy).map(([name, number]) => `${number} of these devices ${number === 1 ? "is" : "are"} in rollout ${name}, which has not ended`);
}

function pause(seconds) {
  return seconds < 120 ? plural(seconds, "second") : seconds < 7200 ? plural(Math.round(seconds / 60), "minute") : plural(Math.round(seconds / 3600), "hour");
}

function step(groups, index, total) {
  const [group, before] = [groups[index], groups[index - 1]];
  const approval = group.approval ? ", when a second person has approved it" : "";
  if (!before) return `${group.devices === total ? `All ${total}` : `${group.devices} of ${total}`} ${total === 1 ? "device" : "devices"} first (${group.name})${approval}.`;
  const size = index === groups.length - 1 ? `the other ${group.devices}` : `${group.devices} more`;
  const wait = group.wait_s ? `, and ${pause(group.wait_s)} after that` : "";
  return `Then ${size} (${group.name}), when ${before.success_percent} % of ${before.name} (${before.needed} of ${before.devices}) run it well${wait}${approval}.`;
}

const BACK = { none: "it waits for a person then", group: "the group that failed then gets the version before again", all: "all its devices then get the version before again" };

/** What a rollout would do. found: the preview of this plan. */
export function foretell(plan, found) {
  const groups = plan.groups.map((group, index) => ({ ...group, ...found.groups[index] })).filter((group) => group.devices);
  if (!groups.length) return element("p", "warn", ["No device would get it", ...outside(found)].join("; "), ".");
  const limits = groups.map((group) => `${group.error_percent} % of ${group.name} (${group.limit} of ${group.devices})`).join(" or ");
  const [left, lacking, busy] = [outside(found).join(", "), slotless(found).join(), hindrances(found).join("; ")];
  return element("div", "plan",
    element("ol", "", ...groups.map((_, index) => element("li", "", step(groups, index, found.devices)))),
    element("p", "", `It stops when ${limits} failed; ${BACK[plan.roll_back]}.`),
    left ? element("p", "soft", `Nothing is sent to others that match: ${left}.`) : null,
    lacking ? element("p", "warn", `${lacking}.`) : null,
    busy ? element("p", "warn", `It cannot start yet: ${busy}.`) : null,
  );
}

function question(title, text, action, ...more) {
  return dialog(element("div", "body",
    element("h2", "", title), element("p", "", text), ...more,
    element("div", "buttons", button("Not now", "", () => close("")), button(action, "danger", () => close("yes"))),
  ));
}

async function begin(rollout, act) {
  const found = await post("/rollouts/preview", { release: rollout.release.id, filter: rollout.filter, plan: rollout.plan });
  const text = `${rollout.release.name} ${rollout.release.version} for ${rollout.release.slot}:`;
  if (await question(`Start ${rollout.name}?`, text, "Start", foretell(rollout.plan, found)) === "yes") act("start");
}

async function accept(group, act) {
  const text = `Group ${group.name} has failed. If you go on, its devices no longer count against the rollout, and the next group gets the release.`;
  if (await question("Go on in spite of it?", text, "Go on") === "yes") act("resume", { accept: true });
}

const sum = (rollout, name) => rollout.groups.reduce((found, group) => found + group.counts[name], 0);

/** Who would keep the release: the first one of a slot leaves nothing to go back to. */
function stayers(rollout) {
  const stay = sum(rollout, "rooted");
  return stay ? ` ${stay} of ${sum(rollout, "succeeded")} that got it ${stay === 1 ? "has" : "have"} no way back and ${stay === 1 ? "stays as it is" : "stay as they are"}.` : "";
}

async function abort(rollout, act) {
  const box = element("input", "");
  box.type = "checkbox";
  const running = sum(rollout, "succeeded") - sum(rollout, "rooted");
  const possible = running > 0 && ["running", "paused"].includes(rollout.state);
  const label = possible ? [element("label", "", box, `Also give the version before back to ${running === 1 ? "the device that runs" : `the ${running} devices that run`} the new one`)] : [];
  const text = `No further device gets the release, and what is open is taken back. An aborted rollout does not go on.${stayers(rollout)}`;
  if (await question(`Abort ${rollout.name}?`, text, "Abort", ...label) === "yes") act("abort", { roll_back: box.checked });
}

async function rollBack(rollout, act) {
  const text = `Every device that still runs this release gets the version before.${stayers(rollout)}`;
  if (await question(`Roll back ${rollout.name}?`, text, "Roll back") === "yes") act("abort", { roll_back: true });
}

async function showDevices(rollout) {
  const found = await get(`/rollouts/${rollout.id}/devices?limit=500`);
  const rows = table([
    ["Device", "near", (row) => row.id], ["Group", "", (row) => row.group], ["Stands", "near", (row) => WORDS[row.at]],
    ["Last words", "wrap", (row) => row.detail], ["When", "near", (row) => (row.updated ? since(row.updated) : "")],
  ], found.devices);
  const left = found.total - found.devices.length;
  await dialog(element("div", "body",
    element("h2", "", `${rollout.name}: ${plural(found.total, "device")}`),
    definitions([["Roll-back", { none: "none: it pauses", group: "the failed group", all: "all groups" }[rollout.plan.roll_back]], ["Devices", rollout.plan.forced ? "install at once" : "wait for their window"]]),
    element("div", "scroll", rows), left ? element("p", "soft", `${left} more are not shown: recognizer-fleet rollout show ${rollout.id} --devices`) : null,
    element("div", "buttons", button("Close", "", () => close(""))),
  ));
}

export function card(rollout, user, act) {
  const title = element("h2", "", rollout.name);
  const made = element("article", `card rollout${ENDED.includes(rollout.state) ? " ended" : ""}`,
    element("div", "head", title, pill(rollout.state), buttons(rollout, user, act)),
    why(rollout), facts(rollout),
    ...rollout.groups.map((group, index) => groupLine(rollout, group, rollout.plan.groups[index])),
  );
  made.dataset.rollout = rollout.id;
  if (rollout.devices) {
    const more = button("Devices", "", () => showDevices(rollout));
    (made.querySelector(".buttons") ?? made.querySelector(".head").appendChild(element("div", "buttons"))).prepend(more);
  }
  return made;
}
