// The management interface: one token, kept in this tab alone, and the feed of what happens.

const KEY = "recognizer-fleet-token";
let token = sessionStorage.getItem(KEY);

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function signedIn() {
  return token !== null;
}

export function keepToken(text) {
  token = text;
  if (text === null) sessionStorage.removeItem(KEY);
  else sessionStorage.setItem(KEY, text);
}

function headers(more) {
  return { Authorization: `Bearer ${token}`, ...more };
}

/** JSON of an answer; throws Refused with the server's words. */
export async function ask(method, path, body) {
  const options = { method, headers: headers(), signal: AbortSignal.timeout(20000), cache: "no-store" };
  if (body !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(`/api/v1${path}`, options);
  } catch {
    throw new Refused(0, "no connection to the server");
  }
  if (response.status === 204) return null;
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refused(response.status, answer.error ?? response.statusText);
  return answer;
}

export const get = (path) => ask("GET", path);
export const post = (path, body) => ask("POST", path, body);

/**
 * Server-sent events, by fetch: EventSource sends no token. Goes on until `signal` aborts.
 * heard(event): one event; state(connected): the connection came or went.
 */
export async function listen(signal, heard, state) {
  let last = "0"; // from the oldest that the server still knows
  while (!signal.aborted) {
    try {
      const response = await fetch(`/api/v1/events?after=${last}`, { headers: headers(), signal, cache: "no-store" });
      if (response.ok) {
        state(true);
        last = await read(response.body, heard, last);
      }
    } catch {
      // gone: once more, a little later
    }
    if (signal.aborted) return;
    state(false);
    await new Promise((resolve) => setTimeout(resolve, 3000));
  }
}

async function read(stream, heard, last) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    let piece;
    try {
      piece = await reader.read();
    } catch {
      return last;
    }
    if (piece.done) return last;
    text += piece.value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const fields = Object.fromEntries(block.split("\n").map((line) => [line.split(":")[0], line.slice(line.indexOf(":") + 1).trim()]));
      if (fields.id) last = fields.id;
      if (fields.data) heard(JSON.parse(fields.data));
    }
  }
}
