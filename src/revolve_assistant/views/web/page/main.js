// Which page it is, the keys that work everywhere, light and dark.
import { h, icon, say } from "./dom.js";
import { List } from "./list.js";
import { Queues, Workers } from "./places.js";
import { Store } from "./store.js";
import { TaskPage } from "./task.js";

const store = new Store();
const main = document.getElementById("main");
const base = new URL(document.baseURI);
let page = null;
let list = null; // kept, with its place and filters, while other pages are shown

function where() {
  const [first, second] = location.pathname.slice(base.pathname.length).split("/");
  return [first || "tasks", second ? decodeURIComponent(second) : ""];
}

function show(focus) {
  const [name, id] = where();
  page?.leave();
  for (const tab of document.querySelectorAll("[data-tab]")) {
    if (tab.dataset.tab === name || (name === "task" && tab.dataset.tab === "tasks")) tab.setAttribute("aria-current", "page");
    else tab.removeAttribute("aria-current");
  }
  if (name === "task") page = new TaskPage(store, id, go);
  else if (name === "workers") page = new Workers(store);
  else if (name === "queues") page = new Queues(store);
  else page = list ??= new List(store, go);
  store.want(name === "task" ? id : "");
  document.title = `${page.title} · Revolve`;
  main.replaceChildren(page.element);
  main.dataset.page = name;
  page.enter();
  if (focus) (page.focused?.() ?? main).focus({ preventScroll: true });
}

export function go(path) {
  history.pushState(null, "", new URL(path, base));
  show(true);
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-go]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  if (link.href !== location.href) go(link.getAttribute("href"));
});
addEventListener("popstate", () => show(true));
document.getElementById("skip").onclick = () => (page.focused?.() ?? main).focus();

// --- what stands at the top

const link = document.getElementById("link");
const WORDS = { joining: "Connecting", live: "Live", lost: "Reconnecting", refused: "Not allowed" };
store.addEventListener("link", () => {
  link.dataset.state = store.linked;
  say(link, WORDS[store.linked]);
});
store.addEventListener("notes", () => {
  const { place, namespace, all } = store.notes;
  const text = namespace && namespace !== "assistant" ? `${place} · ${namespace}` : place;
  const element = document.getElementById("place");
  say(element, text);
  element.title = text;
  document.querySelector(".tabs").hidden = !all;
  document.querySelector(".mark").toggleAttribute("data-go", all);
});
store.addEventListener("view", () => {
  const trouble = document.getElementById("trouble");
  trouble.hidden = !store.view.trouble;
  say(trouble, store.view.trouble);
});

// --- light and dark

const root = document.documentElement;
const button = document.getElementById("theme");
const dark = matchMedia("(prefers-color-scheme: dark)");
function kept() { try { return localStorage.getItem("revolve-theme"); } catch { return null; } }
function paint() {
  const theme = kept() ?? (dark.matches ? "dark" : "light");
  root.dataset.theme = theme;
  button.replaceChildren(icon(theme === "dark" ? "sun" : "moon"));
}
button.onclick = () => {
  try { localStorage.setItem("revolve-theme", root.dataset.theme === "dark" ? "light" : "dark"); } catch { /* private */ }
  paint();
};
dark.onchange = paint;
paint();

// --- keys

const KEYS = [
  ["j  k  ↓  ↑", "next, previous task"], ["Enter", "open it"], ["/", "search"], ["s", "stop it"], ["r", "try it again"],
  ["a", "answer its question"], ["f", "follow the output"], ["g t   g w   g q", "tasks, workers, queues"],
  ["d", "light or dark"], ["Esc", "back"], ["?", "these keys"],
];
function help() {
  const dialog = document.getElementById("dialog");
  dialog.replaceChildren(h("form", { method: "dialog" },
    h("h2", { id: "dialog-title" }, "Keyboard"),
    h("dl.keys", {}, KEYS.map(([keys, what]) => h("div", {}, h("dt", {}, keys.split(/ {2,}/).map((key) => h("kbd", {}, key))), h("dd", {}, what)))),
    h("div.acts", {}, h("button.primary", { type: "submit" }, "Close"))));
  dialog.onclose = () => dialog.replaceChildren();
  dialog.showModal();
}
document.getElementById("keys").append(icon("keys"));
document.getElementById("keys").onclick = help;

let before = "";
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.getElementById("dialog").open) return;
  const typing = event.target.matches("input, textarea, select");
  if (typing && event.key !== "Escape") return;
  const pair = before + event.key;
  before = event.key === "g" ? "g" : "";
  if (pair === "gt") go(".");
  else if (pair === "gw") go("workers");
  else if (pair === "gq") go("queues");
  else if (event.key === "?") help();
  else if (event.key === "d") button.click();
  else if (!page.key?.(event, typing)) return;
  event.preventDefault();
});

store.addEventListener("link", () => { root.dataset.linked = store.linked; });
show(false);
