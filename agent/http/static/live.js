"use strict";
// Polls the state once a second, and each camera's picture as often as there is a new one. Pictures are no streams: a browser
// opens six connections to one server, of all tabs together, and a stream that ends leaves its last picture standing.

const PATIENCE_MS = 5000;
const AGAIN_MS = 2000;
const SHOWS_NOTHING_NEW = new Set(["connecting", "offline", "paused", "ended"]);
let liveFps = 10;

const byId = (id) => document.getElementById(id);

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

async function showPicture(card) {
  const url = `/api/v1/cameras/${encodeURIComponent(card.dataset.id)}/snapshot.jpg?mode=${byId("mode").value}`;
  const response = await fetch(url, { signal: AbortSignal.timeout(PATIENCE_MS) });
  if (!response.ok) throw new Error(response.statusText);
  const picture = await createImageBitmap(await response.blob());
  const canvas = card.querySelector("canvas");
  canvas.width = picture.width;
  canvas.height = picture.height;
  canvas.getContext("2d").drawImage(picture, 0, 0);
  picture.close();
}

async function play(card) {
  while (card.isConnected) {
    const begun = performance.now();
    try {
      if (!document.hidden) {
        await showPicture(card);
        card.classList.remove("dark");
      }
    } catch (error) {
      card.classList.add("dark"); // an old picture must not look live
      await pause(AGAIN_MS);
    }
    const fps = Math.min(liveFps, Math.max(1, Number(card.dataset.fps) || 0));
    await pause(begun + 1000 / fps - performance.now());
  }
}

function cameraCard(camera) {
  let card = document.querySelector(`.camera[data-id="${CSS.escape(camera.camera)}"]`);
  if (!card) {
    card = element("article", undefined, "camera");
    card.dataset.id = camera.camera;
    const picture = element("canvas");
    picture.setAttribute("role", "img");
    picture.setAttribute("aria-label", `live picture of camera ${camera.camera}`);
    card.append(picture, element("p"));
    byId("cameras").append(card);
    play(card);
  }
  return card;
}

function showCamera(camera, active) {
  const card = cameraCard(camera);
  card.dataset.fps = camera.fps;
  card.classList.toggle("alarm", active.some((incident) => incident.camera === camera.camera));
  card.classList.toggle("old", SHOWS_NOTHING_NEW.has(camera.state));
  const scores = Object.entries(camera.live.scores).map(([name, value]) => element("span", `${name} ${value.toFixed(2)}`));
  const people = camera.live.people === 1 ? "1 person" : `${camera.live.people} people`;
  card.querySelector("p").replaceChildren(
    element("strong", camera.camera),
    element("span", camera.state, camera.state),
    ...(camera.moved ? [element("span", "moved", "degraded")] : []),
    element("span", `${camera.fps.toFixed(1)} frames/s`, "soft"),
    element("span", people, "soft"),
    ...scores,
    ...(camera.error ? [element("span", camera.error, "offline")] : []),
  );
}

function showEvents(events) {
  const rows = events.slice(0, 15).map((event) => {
    const row = element("tr");
    const time = new Date(event.t);
    const day = time.toDateString() === new Date().toDateString() ? "" : `${time.toLocaleDateString()}\n`;
    const cells = [
      day + time.toLocaleTimeString(), `${event.kind} ${event.phase}`, event.camera,
      `${event.duration_s.toFixed(0)} s`, `${Math.round(event.confidence * 100)} %`,
    ];
    row.append(...cells.map((text) => element("td", text)));
    row.title = time.toString();
    return row;
  });
  byId("events").replaceChildren(...rows);
}

function showBox(state) {
  const system = state.health.system;
  const outbox = Object.values(state.health.outbox.rows).reduce((sum, rows) => sum + rows, 0);
  const facts = [
    ["Processor", system ? `${Math.round(system.cpu * 100)} %` : "?"],
    ["Memory", system ? `${Math.round(system.memory * 100)} %, agent ${Math.round(system.rss_bytes / 1e6)} MB` : "?"],
    ...state.health.gpus.map((gpu) => [gpu.name || gpu.gpu_id, gpu.temperature_c === null ? "?" : `${gpu.temperature_c} °C`]),
    ["Slowed down", state.health.degradation.step === 0 ? "no" : `step ${state.health.degradation.step} of ${state.health.degradation.steps}`],
    ["Broker", state.mqtt.connected ? "connected" : state.mqtt.enabled ? "offline, events are kept" : "off"],
    ["Waiting messages", String(outbox)],
    ["Version", state.version],
  ];
  byId("box").replaceChildren(...facts.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
  byId("reasons").replaceChildren(
    ...state.health.reasons.map((reason) => element("li", `${reason.reason}: ${reason.detail}`, "degraded")),
  );
}

function show(state) {
  liveFps = state.live_fps;
  byId("device").textContent = state.device;
  const level = byId("level");
  level.textContent = state.health.level;
  level.className = state.health.level;
  const known = new Set(state.cameras.map((camera) => camera.camera));
  document.querySelectorAll(".camera").forEach((card) => known.has(card.dataset.id) || card.remove());
  state.cameras.forEach((camera) => showCamera(camera, state.active));
  const active = state.active.map((incident) => element("li", `${incident.kind} on ${incident.camera} (${incident.phase})`));
  byId("active").replaceChildren(...(active.length ? active : [element("li", "nothing", "none")]));
  showEvents(state.events);
  showBox(state);
}

let lost = false;

async function poll() {
  try {
    const response = await fetch("/api/v1/state", { signal: AbortSignal.timeout(PATIENCE_MS) });
    if (!response.ok) throw new Error(response.statusText);
    show(await response.json());
    lost = false;
  } catch (error) {
    lost = true;
    const level = byId("level");
    level.textContent = "no connection to the agent";
    level.className = "failed";
  }
  document.body.classList.toggle("lost", lost); // old pictures must not look live
  setTimeout(poll, 1000);
}

poll();
