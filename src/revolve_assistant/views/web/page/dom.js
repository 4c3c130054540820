// Elements, icons, words. Text is only ever set as text: the policy of the page allows nothing else.

/** An element: h("div.card", {title: "x", onclick: fn}, child, "text", …). Attributes that are null are left out. */
export function h(what, props = {}, ...children) {
  const [tag, ...classes] = what.split(".");
  const element = document.createElement(tag || "div");
  if (classes.length) element.className = classes.join(" ");
  for (const [name, value] of Object.entries(props)) {
    if (value == null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(element.dataset, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child != null && child !== false));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";
const ICONS = {
  stop: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18zM9.3 9.3h5.4v5.4H9.3z",
  retry: "M19 12a7 7 0 1 1-2-4.9M19 4v4h-4",
  copy: "M9 9h10v10H9zM5 15V5h10",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.4 1.4M17.6 17.6 19 19M5 19l1.4-1.4M17.6 6.4 19 5",
  moon: "M20 14.5A8 8 0 0 1 9.5 4a8 8 0 1 0 10.5 10.5z",
  keys: "M3 7h18v10H3zM7 11h.01M11 11h.01M15 11h.01M8 14h8",
  back: "M14 6l-6 6 6 6",
  down: "M12 5v14M6 13l6 6 6-6",
  up: "M12 19V5M6 11l6-6 6 6",
  search: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14zM16.2 16.2 21 21",
  wrap: "M4 7h16M4 12h13a3 3 0 0 1 0 6h-4M15 15.5 12.5 18l2.5 2.5",
  ask: "M9 9a3 3 0 1 1 4.5 2.6c-1 .6-1.5 1.2-1.5 2.4M12 17.5h.01",
};

export function svg(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export function icon(name) {
  return svg("svg", { viewBox: "0 0 24 24", class: "ic", "aria-hidden": "true", focusable: "false" },
    svg("path", { d: ICONS[name] }));
}

/** Set a text only if it is another one: what does not change costs no layout. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function set(element, name, value) {
  if (value == null) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

// --- words

export const LABELS = {
  pending: "Queued", running: "Running", waiting: "Waiting", retrying: "Retrying",
  succeeded: "Succeeded", failed: "Failed", cancelled: "Cancelled", lost: "Lost",
};
export const ENDS = new Set(["succeeded", "failed", "cancelled", "lost"]);

const whole = new Intl.NumberFormat("en");
export const number = (value) => whole.format(value);

/** A time span for eyes: 4.2 s, 1:05, 2 h 05 min, 3 d. */
export function span(seconds) {
  const s = Math.max(0, seconds);
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 60) return `${Math.floor(s)} s`;
  if (s < 3600) return `${Math.floor(s / 60)}:${String(Math.floor(s % 60)).padStart(2, "0")} min`;
  if (s < 172800) return `${Math.floor(s / 3600)} h ${String(Math.floor((s % 3600) / 60)).padStart(2, "0")} min`;
  return `${Math.floor(s / 86400)} d`;
}

export function ago(seconds) {
  if (seconds < 5) return "just now";
  if (seconds < 60) return `${Math.floor(seconds)} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} d ago`;
}

const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });
export const at = (time) => clock.format(time * 1000);
export const dated = (time) => day.format(time * 1000);

/** app.images:resize -> ["resize", "app.images"]. */
export function named(name) {
  const cut = name.indexOf(":");
  return cut < 0 ? [name || "unknown function", ""] : [name.slice(cut + 1), name.slice(0, cut)];
}

export function percent(fraction) {
  return fraction == null ? "" : `${Math.floor(Math.min(1, Math.max(0, fraction)) * 100)}%`;
}

const short = (value) => (Number.isInteger(value) ? number(value) : value.toPrecision(4));
export function counted(done, total) {
  if (done == null) return "";
  return total == null ? short(done) : `${short(done)} of ${short(total)}`;
}

/** A bar: <div class="bar" role="progressbar">. `show(progress, state)` draws it. */
export function bar(label) {
  const fill = h("span.fill");
  const element = h("div.bar", { role: "progressbar", "aria-label": label, "aria-valuemin": "0", "aria-valuemax": "100" }, fill);
  let drawn = "";
  element.show = (progress, state) => {
    const fraction = state === "succeeded" ? 1 : progress?.[0];
    const known = fraction != null && Number.isFinite(fraction);
    const percents = known ? Math.min(100, Math.max(0, fraction * 100)) : 0;
    const now = `${state} ${known} ${percents.toFixed(1)}`;
    if (now === drawn) return;
    drawn = now;
    element.dataset.state = state;
    element.dataset.known = known || state !== "running" ? "yes" : "no";
    fill.style.transform = known || state !== "running" ? `scaleX(${percents / 100})` : "";
    set(element, "aria-valuenow", known ? Math.floor(percents) : null);
    set(element, "aria-valuetext", known ? null : LABELS[state]);
  };
  return element;
}

export function pill(state) {
  const label = h("span");
  const element = h("span.pill", {}, h("i.dot", { "aria-hidden": "true" }), label);
  element.show = (next) => {
    if (element.dataset.state === next) return;
    element.dataset.state = next;
    say(label, LABELS[next] ?? next);
  };
  if (state) element.show(state);
  return element;
}

// --- what is said in passing

export function toast(text, kind = "") {
  const element = h("div.toast", { data: { kind } }, text);
  document.getElementById("toasts").append(element);
  setTimeout(() => element.remove(), 6000);
}

/** A dialog; resolves with what was typed (or "yes"), null if it was left. */
export function ask({ title, text, yes, field, danger }) {
  const dialog = document.getElementById("dialog");
  return new Promise((resolve) => {
    const input = field ? h("input", { "aria-label": field, autocomplete: "off", maxlength: 10000 }) : null;
    const no = h("button", { type: "button", onclick: () => dialog.close() }, "Leave it");
    const form = h("form", { method: "dialog" },
      h("h2", { id: "dialog-title" }, title), text && h("p.wrap", {}, text), input,
      h("div.acts", {}, no, h(danger ? "button.danger" : "button.primary", { type: "submit" }, yes)));
    let said = null;
    form.onsubmit = () => { said = input ? input.value : "yes"; };
    dialog.replaceChildren(form);
    dialog.onclose = () => { dialog.replaceChildren(); resolve(said); };
    dialog.showModal();
    (input ?? form.querySelector("[type=submit]")).focus();
  });
}
