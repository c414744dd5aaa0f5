// A new rollout: what an operator chooses, what would come of it while it is typed, and a last look before it is made.

import { Refused, get, post } from "./api.js";
import { button, close, dialog, element, plural, relative } from "./parts.js";
import { foretell, hindrances, outside, slotless } from "./rollouts.js";

const SHOWN = 5;
const PAUSE_MS = 350;
const REST = { name: "rest", success_percent: 90, error_percent: 20 };
/** Where the server says that something is wrong, and the field that it is about. */
const FIELDS = {
  name: "name", release: "release", filter: "filter",
  "plan.groups.0.percent": "percent", "plan.groups.0.success_percent": "success", "plan.groups.0.error_percent": "failed",
};

/** The server's words by field; what is about none of them under "". */
function placed(error) {
  if (error.status === 404 || error.status === 409) return { release: error.message };
  const found = {};
  for (const part of error.message.split("; ")) {
    const [, place, text] = /^([\w.]+): (?:Value error, )?(.*)$/s.exec(part) ?? [];
    const field = (error.status === 400 && FIELDS[place]) || "";
    const words = !field ? part : text.includes("match pattern") ? "no slash as its first character, and nothing that is not printed" : text;
    found[field] = found[field] ? `${found[field]}; ${words}` : words;
  }
  return found;
}

// --- the form --------------------------------------------------------------------------------------------------------

/** The place for what is wrong with a control. */
function problemOf(control, id) {
  control.id = `new-${id}`;
  const problem = element("pre", "bad problem");
  problem.id = `${control.id}-problem`;
  problem.setAttribute("aria-live", "polite");
  control.setAttribute("aria-describedby", problem.id);
  return problem;
}

function teller(control, problem) {
  return (text) => {
    problem.textContent = text ?? "";
    problem.classList.toggle("code", problem.textContent.includes("\n")); // its last line points at a column
    control.setAttribute("aria-invalid", String(Boolean(text)));
  };
}

function field(id, label, control) {
  const problem = problemOf(control, id);
  const title = element("label", "", label);
  title.htmlFor = control.id;
  return { control, tell: teller(control, problem), box: element("div", "field", title, control, problem) };
}

function input(type, value, more) {
  return Object.assign(element("input", ""), { type, value, autocomplete: "off", spellcheck: false }, more);
}

function percent(id, label, value) {
  const control = input("number", value, { min: "0", max: "100", step: "any" });
  control.inputMode = "decimal";
  return field(id, label, control);
}

function chooser(releases) {
  const control = element("select", "");
  for (const release of releases) {
    const option = element("option", "", `${release.name} ${release.version} for ${release.slot}, number ${release.number}, ${relative(release.created)}`);
    option.value = release.id;
    control.append(option);
  }
  return control;
}

function choice(value, text, chosen) {
  const control = Object.assign(element("input", ""), { type: "radio", name: "when", value, checked: chosen });
  return element("label", "", control, element("span", "", text));
}

function choices() {
  const control = element("fieldset", "", element("legend", "", "When"),
    choice("start", "Start now", true), choice("later", "Later, as a draft: it stays “ready” until somebody starts it", false));
  const problem = problemOf(control, "when");
  return { control, tell: teller(control, problem), box: element("div", "field", control, problem), get start() { return control.querySelector("input").checked; } };
}

function fieldsOf(releases) {
  return {
    release: field("release", "Release", chooser(releases)),
    name: field("name", "Name", input("text", "", { maxLength: 128 })),
    filter: field("filter", "Devices", input("text", "", { placeholder: "all; or a filter: site==berlin;pose.version=lt=0.7", autocapitalize: "none" })),
    percent: percent("percent", "Canary: % of the devices", "10"),
    success: percent("success", "Go on at: % of it well", "90"),
    failed: percent("failed", "Stop at: % of it failed", "10"),
    when: choices(),
  };
}

/** `pose-nano 0.8.0`, or with a number behind it when there is such a rollout. */
function proposed(release, taken) {
  const name = `${release.name} ${release.version}`.slice(0, 120);
  let number = 1;
  while (taken.has(number === 1 ? name : `${name} (${number})`)) number += 1;
  return number === 1 ? name : `${name} (${number})`;
}

/** What is asked of the server: all thresholds are said, so that what is shown is what counts. */
function proposal(fields) {
  const number = (name) => fields[name].control.valueAsNumber;
  const canary = { name: "canary", percent: number("percent"), success_percent: number("success"), error_percent: number("failed") };
  return { release: Number(fields.release.control.value), filter: fields.filter.control.value.trim(), plan: { groups: [canary, REST], roll_back: "group" } };
}

function unclear(fields) {
  const found = {};
  for (const name of ["percent", "success", "failed"]) if (Number.isNaN(fields[name].control.valueAsNumber)) found[name] = "give a number, 0 to 100";
  return found;
}

// --- what would come of it -------------------------------------------------------------------------------------------

/** Asks the server; throws Refused. filter: what is wrong with it, in the words for people. */
async function ask(given) {
  const query = given.filter ? `&filter=${encodeURIComponent(given.filter)}` : "";
  let devices;
  try {
    devices = await get(`/devices?limit=${SHOWN}${query}`);
  } catch (error) {
    if (error.status !== 400) throw error;
    return { given, problems: { filter: error.message } };
  }
  try {
    return { given, devices, found: await post("/rollouts/preview", given), problems: {} };
  } catch (error) {
    if (!(error instanceof Refused) || error.status === 401) throw error;
    return { given, devices, problems: placed(error) };
  }
}

/** The devices that match, by number and first names; then those that would get it. */
function counted({ devices, found }) {
  if (!devices) return [];
  const left = devices.total - devices.devices.length;
  const names = devices.devices.map((device) => device.id).join(", ") + (left > 0 ? ` and ${left} more` : "");
  const match = element("p", "", element("strong", "", `${plural(devices.total, "device")} match${devices.total === 1 ? "es" : ""}`), names ? `: ${names}` : "");
  if (!found) return [match];
  const getters = found.groups.filter((group) => group.devices).map((group) => `${group.name} ${group.devices}`).join(", ");
  const would = found.devices ? `${plural(found.devices, "device")} would get it (${getters})` : "None of them would get it";
  const trouble = [...slotless(found), ...hindrances(found)];
  return [match, element("p", "soft", [would, ...outside(found)].join("; ")), trouble.length ? element("p", "warn", trouble.join("; ")) : ""];
}

/** Why it cannot start now, by field. */
function hindered({ found }) {
  const [busy] = hindrances(found);
  if (busy) return { when: `${busy}: choose others, or keep it as a draft` };
  return found.devices ? {} : { filter: "none of these devices would get the release" };
}

// --- the dialog ------------------------------------------------------------------------------------------------------

async function everyRelease() {
  const found = [];
  for (let offset = 0; offset !== null;) {
    const page = await get(`/releases?limit=1000&offset=${offset}`);
    found.push(...page.releases);
    offset = page.next;
  }
  return found.sort((one, other) => other.created.localeCompare(one.created) || other.number - one.number || other.id - one.id);
}

function nothingToGive() {
  return dialog(element("div", "body",
    element("h2", "", "New rollout"),
    element("p", "", "There is no release yet. Sign one and publish it: ", element("code", "", "recognizer-fleet sign"), ", ", element("code", "", "recognizer-fleet publish")),
    element("div", "buttons", button("Close", "", () => close(""))),
  ));
}

/** The whole way in the dialog; resolves when it is closed. Throws Refused where nothing could be asked. */
export async function newRollout() {
  const [releases, others] = await Promise.all([everyRelease(), get("/rollouts?limit=1000")]);
  if (!releases.length) return nothingToGive();
  const form = new Form(releases, new Set(others.rollouts.map((rollout) => rollout.name)));
  const closed = dialog(form.body);
  form.look();
  return closed;
}

class Form {
  constructor(releases, taken) {
    this.releases = new Map(releases.map((release) => [release.id, release]));
    this.taken = taken;
    this.fields = fieldsOf(releases);
    this.asked = 0;
    this.count = element("div", "count");
    this.count.setAttribute("role", "status");
    this.problem = element("p", "bad");
    this.problem.setAttribute("role", "alert");
    this.form = this.drawn();
    this.body = element("div", "body", this.form);
    this.propose();
  }

  drawn() {
    const { release, name, filter, percent: size, success, failed, when } = this.fields;
    filter.box.append(this.count);
    const made = element("form", "", element("h2", "", "New rollout"), release.box, name.box, filter.box,
      element("div", "trio", size.box, success.box, failed.box),
      element("p", "soft", `The rest: stop at ${REST.error_percent} % failed. A group that fails gets the version before again. More groups, an approval or a time: `, element("code", "", "recognizer-fleet rollout create")),
      when.box, this.problem, element("div", "buttons", button("Cancel", "", () => close("")), element("button", "main", "Next")));
    made.noValidate = true; // the server judges, and its words stand beside the fields
    made.addEventListener("submit", (event) => { event.preventDefault(); this.goOn(); });
    made.addEventListener("input", (event) => this.changed(event.target));
    return made;
  }

  propose() {
    this.suggestion = proposed(this.releases.get(Number(this.fields.release.control.value)), this.taken);
    this.fields.name.control.value = this.suggestion;
  }

  changed(control) {
    if (control === this.fields.release.control && this.fields.name.control.value === this.suggestion) this.propose();
    if (control === this.fields.name.control) this.fields.name.tell("");
    else {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.look(), PAUSE_MS);
    }
  }

  tell(problems) {
    for (const [name, shown] of Object.entries(this.fields)) shown.tell(problems[name]);
    this.problem.textContent = problems[""] ?? "";
  }

  /** What the server says to what is in the form; null when something is wrong with it, or newer. */
  async look() {
    clearTimeout(this.timer);
    const mine = ++this.asked;
    const given = proposal(this.fields);
    let answer = { given, problems: unclear(this.fields) };
    try {
      if (!Object.keys(answer.problems).length) answer = await ask(given);
    } catch (error) {
      if (!(error instanceof Refused) || error.status === 401) throw error;
      answer.problems = { "": error.message };
    }
    if (mine !== this.asked) return null;
    this.tell(answer.problems);
    this.count.replaceChildren(...counted(answer));
    return Object.keys(answer.problems).length ? null : answer;
  }

  async goOn() {
    const answer = await this.look();
    const name = this.fields.name.control.value.trim();
    const start = this.fields.when.start;
    const problems = answer && { ...(start ? hindered(answer) : {}), ...(name ? {} : { name: "give it a name" }) };
    if (problems && !Object.keys(problems).length) this.last(answer, name, start);
    else this.wrong(problems);
  }

  /** In the form, at the first field that something is wrong with. problems: null when they are told already. */
  wrong(problems) {
    if (!this.form.isConnected) this.body.replaceChildren(this.form);
    if (problems) this.tell(problems);
    const first = this.form.querySelector("[aria-invalid=true]");
    (first?.querySelector("input:checked") ?? first)?.focus();
  }

  last({ given, found }, name, start) {
    const release = this.releases.get(given.release);
    const title = element("h2", "", start ? `Start ${name}?` : `Create ${name}?`);
    title.tabIndex = -1;
    const problem = element("p", "bad");
    problem.setAttribute("role", "alert");
    const go = button(start ? "Create and start" : "Create", "main", () => this.make({ name, ...given }, start, go, problem));
    this.body.replaceChildren(title,
      element("p", "", `${release.name} ${release.version} for ${release.slot}, to `, given.filter ? element("code", "", given.filter) : "all devices", "."),
      foretell(given.plan, found),
      element("p", "soft", start ? "Who takes part is settled by the start." : "Nothing happens before somebody starts it. Who takes part is settled then; these are the numbers of now."),
      problem, element("div", "buttons", button("Back", "", () => this.wrong(null)), go));
    title.focus(); // not the button: an Enter that is held down must not start a rollout
  }

  async make(wanted, start, go, problem) {
    go.disabled = true;
    problem.textContent = "";
    let made;
    try {
      made = await post("/rollouts", wanted);
    } catch (error) {
      go.disabled = false;
      go.focus();
      this.refused(error, problem);
      return;
    }
    try {
      if (start) await post(`/rollouts/${made.id}/start`);
      if (this.body.isConnected) close("made");
    } catch (error) {
      if (!(error instanceof Refused) || error.status === 401) throw error;
      this.body.replaceChildren(element("h2", "", `${made.name} is there, but did not start`), element("p", "bad", error.message),
        element("p", "", "It stays ready on the list, where it can be started or aborted."), element("div", "buttons", button("Close", "main", () => close("made"))));
    }
  }

  refused(error, problem) {
    if (!(error instanceof Refused) || error.status === 401) throw error;
    const problems = placed(error);
    if (problems[""] === undefined) this.wrong(problems);
    else problem.textContent = error.status ? error.message : `${error.message}: it may have been created all the same. Look at the list before you try again.`;
  }
}
