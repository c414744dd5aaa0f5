// Pieces of pages. Text goes in as text, never as markup.

export const byId = (id) => document.getElementById(id);

/** element("p", "soft", "text", child, ...) */
export function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

export function button(text, className, clicked) {
  const made = element("button", className, text);
  made.type = "button";
  made.addEventListener("click", clicked);
  return made;
}

const UNITS = [["day", 86400], ["hour", 3600], ["minute", 60]];
const RELATIVE = new Intl.RelativeTimeFormat("en", { numeric: "auto" });

/** `3 minutes ago`, with the exact time on hover; "never" for null. */
export function since(text) {
  if (!text) return element("span", "soft", "never");
  const made = element("time", "", relative(text));
  made.dateTime = text;
  made.title = new Date(text).toString();
  return made;
}

export function relative(text) {
  const seconds = (new Date(text) - Date.now()) / 1000;
  const [unit, length] = UNITS.find(([, size]) => Math.abs(seconds) >= size) ?? ["second", 1];
  if (unit === "second" && seconds <= 0 && seconds > -10) return "just now";
  return RELATIVE.format(Math.trunc(seconds / length), unit);
}

export function clock(date) {
  return date.toLocaleTimeString([], { hour12: false });
}

export function bytes(number) {
  const [unit, size] = [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]].find(([, limit]) => number >= limit) ?? ["B", 1];
  return `${(number / size).toFixed(size > 1 ? 1 : 0)} ${unit}`;
}

export function plural(number, word) {
  return `${number} ${word}${number === 1 ? "" : "s"}`;
}

/** columns: [label, class, row => content]; clicked(row): makes rows links. */
export function table(columns, rows, clicked) {
  const head = element("tr", "", ...columns.map(([label, className]) => element("th", className, label)));
  const body = rows.map((row) => {
    const line = element("tr", clicked ? "link" : "", ...columns.map(([label, className, content]) => {
      const found = content(row);
      const cell = element("td", className, ...(Array.isArray(found) ? [element("div", "", ...found)] : [found]));
      cell.dataset.label = label;
      return cell;
    }));
    if (clicked) {
      line.tabIndex = 0;
      line.addEventListener("click", () => clicked(row));
      line.addEventListener("keydown", (event) => event.key === "Enter" && clicked(row));
    }
    return line;
  });
  return element("table", "", element("thead", "", head), element("tbody", "", ...body));
}

export function definitions(pairs) {
  return element("dl", "", ...pairs.flatMap(([name, value]) => [element("dt", "", name), element("dd", "", value)]));
}

/** Shows `content` in the dialog; resolves when it closes, with what the clicked button stands for ("" = closed). */
export function dialog(...content) {
  const box = byId("dialog");
  box.replaceChildren(...content);
  box.returnValue = "";
  box.showModal();
  return new Promise((resolve) => box.addEventListener("close", () => resolve(box.returnValue), { once: true }));
}

export function close(value) {
  byId("dialog").close(value);
}
