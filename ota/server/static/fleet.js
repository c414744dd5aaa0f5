// The page: sign in, then one of five pages, drawn again when something happens.

import { Refused, ask, get, keepToken, listen, signedIn } from "./api.js";
import { newRollout } from "./create.js";
import { button, byId, bytes, clock, close, definitions, dialog, element, plural, since, table } from "./parts.js";
import { card, pill } from "./rollouts.js";

const PAGES = { rollouts, devices, releases, events, audit };
const STATUS = { online: "good", offline: "bad", never: "soft" };
const UPDATE = { unknown: "soft", registered: "soft", pending: "busy", in_sync: "good", error: "bad" };
const ACTION = { finished: "good", error: "bad", canceled: "soft", canceling: "warn", warning: "warn" };
const KEPT = 300;
const MORE_ROWS = 200;
const MOST_ROWS = 1000; // that the server gives at once

let user = null;
let feed = null;
let heard = [];
let further = 0; // rows beyond those that a page begins with
let wanted = { filter: "", search: "" };
let drawing = 0;
let underway = 0; // drawings that wait for the server
let late = false; // something happened meanwhile
let again = null;

// --- signing in ------------------------------------------------------------------------------------------------------

async function enter() {
  try {
    user = await get("/me");
  } catch (error) {
    leave(error.status === 401 ? "The server does not know this token." : error.message);
    return;
  }
  byId("sign-in").hidden = true;
  byId("fleet").hidden = false;
  byId("user").replaceChildren(user.name, element("span", "role", ` (${user.role})`));
  document.querySelectorAll("[data-role=operator]").forEach((link) => { link.hidden = user.role === "viewer"; });
  feed?.abort();
  feed = new AbortController();
  heard = [];
  listen(feed.signal, hear, (connected) => {
    byId("live").className = connected ? "good" : "bad";
    byId("live").textContent = connected ? "" : " offline";
  });
  draw();
}

function leave(problem) {
  feed?.abort();
  keepToken(null);
  user = null;
  drawing += 1;
  if (byId("dialog").open) close("");
  byId("fleet").hidden = true;
  byId("sign-in").hidden = false;
  byId("sign-in-problem").textContent = problem ?? "";
  byId("token").focus();
}

byId("sign-in-form").addEventListener("submit", (event) => {
  event.preventDefault();
  keepToken(byId("token").value.trim());
  byId("token").value = "";
  enter();
});
byId("sign-out").addEventListener("click", () => leave());

// --- drawing ---------------------------------------------------------------------------------------------------------

function current() {
  const name = location.hash.slice(1);
  return name in PAGES ? name : "rollouts";
}

/** Draws the page that the address names; an answer that comes after a newer one was asked for is dropped. */
async function draw() {
  if (user === null) return;
  const mine = ++drawing;
  const name = current();
  document.querySelectorAll("nav a").forEach((link) => {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  });
  underway += 1;
  try {
    const made = await PAGES[name]();
    if (mine !== drawing) return;
    show(made);
    tell("");
  } catch (error) {
    if (mine === drawing) fail(error);
  } finally {
    underway -= 1;
    if (late) soon();
  }
}

/** Puts the new page in place; a field that is being typed in stays. */
function show(made) {
  const page = byId("page");
  const field = page.contains(document.activeElement) && document.activeElement.id ? document.activeElement : null;
  const place = field && "selectionStart" in field ? [field.value, field.selectionStart, field.selectionEnd] : null;
  page.replaceChildren(...made);
  const same = field && byId(field.id);
  if (!same) return;
  same.focus();
  if (place) {
    same.value = place[0];
    same.setSelectionRange(place[1], place[2]);
  }
}

function tell(problem) {
  byId("problem").hidden = !problem;
  byId("problem").textContent = problem;
}

function fail(error) {
  if (!(error instanceof Refused)) throw error;
  if (error.status === 401) leave("Signed out: the server no longer knows this token.");
  else tell(error.message);
}

async function act(rollout, what, body) {
  try {
    await ask("POST", `/rollouts/${rollout.id}/${what}`, body);
    await draw();
  } catch (error) {
    fail(error);
  }
}

/** Draws once more, but never while a drawing runs: over a large fleet one takes longer than events are apart. */
function soon() {
  late = underway > 0;
  if (!late && again === null) again = setTimeout(() => { again = null; if (underway) late = true; else draw(); }, 700);
}

function hear(event) {
  if (event.kind !== "reset") {
    heard.unshift({ ...event, at: event.at ? new Date(event.at) : new Date() });
    heard.length = Math.min(heard.length, KEPT);
  }
  soon();
}

window.addEventListener("hashchange", () => { further = 0; draw(); });
window.addEventListener("unhandledrejection", (event) => { // of what was clicked
  if (!(event.reason instanceof Refused)) return;
  event.preventDefault();
  fail(event.reason);
});
setInterval(() => { if (!byId("dialog").open) soon(); }, 15000); // "3 minutes ago" goes on, too

// --- the five pages --------------------------------------------------------------------------------------------------

function nothing(text) {
  return element("p", "card nothing", text);
}

const limit = (first) => Math.min(MOST_ROWS, first + further);

/** A button for what is not shown, or the word that it is not. found: a list of the server's; elsewhere: where all of it is. */
function remainder(found, shown, elsewhere) {
  const left = found.total - shown;
  if (!left || !shown) return [];
  if (shown >= MOST_ROWS) return [element("p", "soft", `${left} more are not shown: ${elsewhere}`)];
  return [button(`More (${left})`, "", () => { further += MORE_ROWS; draw(); })];
}

async function rollouts() {
  const reader = user; // who may have signed out by the time of the answer
  const found = await get(`/rollouts?limit=${limit(50)}`);
  const cards = found.rollouts.map((rollout) => card(rollout, reader, (what, body) => act(rollout, what, body)));
  if (!cards.length) cards.push(nothing("No rollouts yet."));
  cards.push(...remainder(found, found.rollouts.length, "recognizer-fleet rollout list"));
  return reader.role === "viewer" ? cards : [element("div", "tools", creator()), ...cards];
}

function creator() {
  const made = button("New rollout", "main", async () => {
    await newRollout();
    await draw();
    byId("new-rollout")?.focus();
  });
  made.id = "new-rollout";
  return made;
}

async function devices() {
  const query = wanted.filter ? `&filter=${encodeURIComponent(wanted.filter)}` : "";
  let problem = null;
  let found = { devices: [], total: 0, next: null };
  try {
    found = await get(`/devices?limit=${limit(100)}${query}`);
  } catch (error) {
    if (error.status !== 400) throw error;
    problem = element("pre", "card bad problem", error.message);
  }
  const body = found.total ? element("div", "card scroll devices", deviceTable(found.devices)) : nothing(wanted.filter ? "No device fits." : "No devices yet.");
  const tiles = deviceTiles(await get("/device-counts"));
  return [tiles, deviceTools(found), problem ?? body, ...remainder(found, found.devices.length, "filter them, or recognizer-fleet devices list")];
}

function deviceTiles({ total, status, update_status: update }) {
  const tile = (label, number, filter, look) => {
    const made = button("", "card tile", () => { wanted.filter = filter; further = 0; draw(); });
    made.replaceChildren(element("strong", number && look ? look : "", String(number)), element("span", "soft", label));
    return made;
  };
  return element("section", "tiles",
    tile("devices", total, "", ""), tile("online", status.online, "status==online", "good"), tile("offline", status.offline, "status==offline", "bad"),
    tile("updating", update.pending, "update==pending", "busy"), tile("in sync", update.in_sync, "update==in_sync", "good"), tile("failed", update.error, "update==error", "bad"),
  );
}

function deviceTools(found) {
  const field = element("input", "");
  field.id = "filter";
  field.type = "search";
  field.value = wanted.filter;
  field.placeholder = "filter: site==berlin;pose.version=lt=0.7";
  field.setAttribute("aria-label", "Filter");
  field.spellcheck = false;
  field.addEventListener("change", () => { wanted.filter = field.value.trim(); further = 0; draw(); });
  return element("div", "tools", field, element("span", "soft", plural(found.total, "device")));
}

/** By slot: what the device says that it runs, else what it was last given. */
function running(device) {
  const found = Object.fromEntries(Object.entries(device.installed).map(([slot, one]) => [slot, `${one.name} ${one.version}`]));
  for (const [name, value] of Object.entries(device.attributes)) {
    if (name.startsWith("model.")) found[name.slice(6).replace(/^action-/, "action/")] = value;
  }
  return found;
}

function versions(device) {
  return Object.entries(running(device)).sort().map(([slot, title]) => element("div", "", `${title} `, element("span", "soft", slot)));
}

function deviceTable(found) {
  const health = (device) => device.attributes.health ?? "";
  const rest = (device) => Object.entries(device.attributes).filter(([name]) => name !== "health" && !/^(model|number)\./.test(name)).slice(0, 6);
  return table([
    ["Device", "", (device) => [element("strong", "", device.id), device.name === device.id ? "" : element("div", "soft", device.name)]],
    ["Status", "near", (device) => element("span", `dot ${STATUS[device.status]}`, device.status)],
    ["Update", "near", (device) => pillOf(device.update_status, UPDATE)],
    ["Runs", "near", versions],
    ["Health", "", (device) => element("span", { ok: "good", degraded: "warn", failed: "bad" }[health(device)] ?? "soft", health(device))],
    ["Last seen", "near", (device) => since(device.last_seen)],
    ["Attributes", "wrap wide", (device) => rest(device).map(([name, value]) => element("span", "tag", `${name} ${value}`))],
  ], found, showDevice);
}

function pillOf(state, looks) {
  return element("span", `pill ${looks[state] ?? "busy"}`, state.replaceAll("_", " "));
}

async function showDevice(row) {
  let device;
  try {
    device = await get(`/devices/${encodeURIComponent(row.id)}`);
  } catch (error) {
    fail(error);
    return;
  }
  const actions = table([
    ["When", "near", (action) => since(action.updated)], ["Release", "near", (action) => action.title],
    ["State", "near", (action) => pillOf(action.state, ACTION)], ["Last words", "wrap", (action) => action.detail],
  ], device.actions);
  await dialog(element("div", "body",
    element("h2", "", device.id),
    definitions([
      ["Name", device.name], ["Status", device.status], ["Address", device.address || "unknown"], ["Last seen", since(device.last_seen)],
      ["Runs", element("div", "", ...versions(device))], ...Object.entries(device.attributes),
    ]),
    device.actions.length ? element("div", "scroll", actions) : element("p", "soft", "Nothing was ever sent to it."),
    element("div", "buttons", button("Close", "", () => close(""))),
  ));
}

async function releases() {
  const found = await get(`/releases?limit=${limit(200)}&all=true`);
  if (!found.total) return [nothing("No releases. Sign one and publish it: recognizer-fleet sign, recognizer-fleet publish")];
  return [element("div", "card scroll", table([
    ["Release", "near", (release) => element("strong", "", `${release.name} ${release.version}`)], ["Slot", "near", (release) => release.slot],
    ["Number", "number", (release) => String(release.number)], ["Size", "number near", (release) => bytes(release.length)],
    ["Signed", "near", (release) => (release.available ? element("span", "good", "yes") : element("span", "bad", "no longer"))],
    ["Known", "near", (release) => since(release.created)], ["SHA-256", "wrap", (release) => element("code", "soft", release.sha256.slice(0, 16))],
  ], found.releases)), ...remainder(found, found.releases.length, "/api/v1/releases has them")];
}

function sentence(event) {
  const detail = event.detail ? ` ${event.detail}` : "";
  switch (event.kind) {
    case "action": return [element("strong", "", event.device), " ", pillOf(event.state, ACTION), detail];
    case "rollout": return [element("strong", "", event.name ?? `rollout ${event.subject}`), " ", pill(event.state), detail];
    case "group": return [element("strong", "", `${event.name}, ${event.group}`), " ", event.devices ? `${event.state} ${plural(event.devices, "device")}` : pill(event.state), detail];
    case "release": return [element("strong", "", event.title), ` for ${event.slot} is here`];
    default: return [element("strong", "", String(event.subject)), ` ${event.change ?? ""}`];
  }
}

async function events() {
  if (!heard.length) return [nothing("Nothing has happened since the server's start.")];
  const items = heard.map((event) => {
    const time = element("time", "", clock(event.at));
    time.title = event.at.toString();
    return element("li", "", time, element("span", "soft", event.kind), element("p", "", ...sentence(event)));
  });
  return [element("ol", "card scroll feed", ...items)];
}

async function audit() {
  const found = await get(`/audit?limit=${limit(100)}`);
  const told = (detail) => Object.entries(detail).map(([name, value]) => `${name} ${typeof value === "object" ? JSON.stringify(value) : value}`).join(", ");
  return [element("div", "card scroll", table([
    ["When", "near", (entry) => since(entry.at)], ["Who", "near", (entry) => [entry.who, " ", element("span", "soft", entry.address)]],
    ["What", "near", (entry) => element("code", "", entry.what)], ["Subject", "near", (entry) => entry.subject],
    ["Detail", "wrap", (entry) => element("span", "soft", told(entry.detail).slice(0, 300))],
  ], found.audit)), ...remainder(found, found.audit.length, "/api/v1/audit has them")];
}

if (signedIn()) enter();
else leave();
