// The list of tasks: counts, rates, filters, and rows of which only those on the screen exist.
import { ENDS, LABELS, ago, ask, bar, counted, h, icon, named, number, percent, pill, say, set, span, svg, toast } from "./dom.js";

const STATES = ["running", "pending", "waiting", "retrying", "succeeded", "failed", "cancelled", "lost"];
const SPARE = 6; // rows beyond the edge of the screen
const LATEST = 400; // ms between two orderings while much happens

export class List {
  title = "Tasks";

  constructor(store, go) {
    this.store = store;
    this.go = go;
    this.order = []; // the tasks that are listed, as they stand
    this.pool = [];
    this.at = 0; // the row that has the keyboard
    this.state = "";
    this.build();
    this.hear = {
      rows: (event) => this.fold(event.detail), view: () => this.summary(), notes: () => this.render(true),
    };
  }

  // --- to be shown and left

  enter() {
    const query = new URLSearchParams(location.search);
    if (query.size || !this.entered) {
      this.search.value = query.get("q") ?? "";
      this.state = STATES.includes(query.get("state")) ? query.get("state") : "";
      this.wanted = query.get("queue") ?? "";
    } else this.address();
    this.entered = true;
    for (const [name, fn] of Object.entries(this.hear)) this.store.addEventListener(name, fn);
    this.clock = setInterval(() => this.render(true), 1000);
    this.resized = new ResizeObserver(() => { this.measure(); this.render(); });
    this.resized.observe(this.scroll);
    this.measure();
    this.sort();
    this.summary();
    this.scroll.scrollTop = this.top ?? 0;
    this.render(true);
  }

  leave() {
    this.top = this.scroll.scrollTop;
    for (const [name, fn] of Object.entries(this.hear)) this.store.removeEventListener(name, fn);
    clearInterval(this.clock);
    this.resized.disconnect();
  }

  focused() { return this.pool.find((row) => row.index === this.at && !row.element.hidden)?.link ?? this.search; }

  // --- what it is made of

  build() {
    this.stats = {};
    const stat = (key, label) => h("div.stat", { data: { key } }, h("span.label", {}, label), (this.stats[key] = h("strong", {}, "0")));
    this.spark = svg("svg", { class: "spark", role: "img", "aria-label": "tasks that ended in the last two minutes", preserveAspectRatio: "none", viewBox: "0 0 240 40" });
    this.search = h("input.search", { type: "search", placeholder: "Search by function or id", "aria-label": "Search by function or id", oninput: () => this.filter() });
    this.queue = h("select", { "aria-label": "Queue", onchange: () => { this.wanted = this.queue.value; this.filter(); } }, h("option", { value: "" }, "All queues"));
    this.chips = ["", ...STATES].map((state) => {
      const count = h("b", {}, "0");
      const chip = h("button.chip", { type: "button", "aria-pressed": "false", data: { state }, onclick: () => { this.state = this.state === state ? "" : state; this.filter(); } },
        state && h("i.dot", { "aria-hidden": "true" }), LABELS[state] ?? "All", count);
      chip.count = count;
      return chip;
    });
    this.space = h("div.space", { role: "rowgroup" });
    const heads = ["State", "Task", "Progress", "Queue", "Worker", "Time", "Actions"];
    this.head = h("div.head", { role: "rowgroup" }, h("div.row", { role: "row", "aria-rowindex": 1 },
      heads.map((text, place) => h(`span.c${place}`, { role: "columnheader" }, text))));
    this.scroll = h("div.scroll", {}, this.space);
    this.grid = h("div.grid", { role: "grid", "aria-label": "Tasks", "aria-colcount": heads.length }, this.head, this.scroll);
    this.none = h("div.none", { hidden: true });
    this.fresh = h("button.fresh", { type: "button", hidden: true, onclick: () => { this.scroll.scrollTop = 0; this.sort(); this.render(); } });
    this.element = h("section.list", { "aria-label": "Tasks" },
      h("h1.unseen", {}, "Tasks"),
      h("div.summary", {}, stat("running", "Running"), stat("queued", "Queued"), stat("succeeded", "Succeeded"), stat("bad", "Failed"),
        h("div.stat.wide", {}, h("span.label", {}, "Ended a second"), (this.stats.rate = h("strong", {}, "0")), this.spark)),
      h("div.filters", {}, h("label.searching", {}, icon("search"), this.search), this.queue, h("div.chips", { role: "group", "aria-label": "State" }, this.chips)),
      h("div.table", {}, this.grid, this.none, this.fresh));
    let waiting = false;
    this.scroll.addEventListener("scroll", () => {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => { waiting = false; this.render(); });
    }, { passive: true });
    this.space.addEventListener("click", (event) => {
      const row = event.target.closest(".row");
      if (row && !event.target.closest("a, button") && !getSelection().toString()) this.go(`task/${encodeURIComponent(row.owner.task.id)}`);
    });
  }

  row() {
    const row = { task: null, index: -1, pill: pill(), bar: bar("progress"), name: h("b"), more: h("small"), words: h("small.words"),
      percent: h("span.percent"), queue: h("span.c3", { role: "gridcell" }), worker: h("span.c4", { role: "gridcell" }),
      took: h("span.took"), when: h("small") };
    row.link = h("a", { "data-go": true, tabindex: -1, onfocus: () => { this.at = row.index; this.rove(); } }, row.name, row.more);
    row.act = h("button.icon", { type: "button", tabindex: -1, onclick: () => this.act(row.task) });
    row.element = h("div.row", { role: "row" },
      h("span.c0", { role: "gridcell" }, row.pill), h("span.c1", { role: "gridcell" }, row.link),
      h("span.c2", { role: "gridcell" }, h("span.meter", {}, row.bar, row.percent), row.words), row.queue, row.worker,
      h("span.c5", { role: "gridcell" }, row.took, row.when), h("span.c6", { role: "gridcell" }, row.act));
    row.element.owner = row;
    this.space.append(row.element);
    return row;
  }

  measure() {
    this.height = parseFloat(getComputedStyle(this.space).getPropertyValue("--row")) || 56;
    this.room = this.scroll.clientHeight || 600;
    this.head.style.paddingRight = `${this.scroll.offsetWidth - this.scroll.clientWidth}px`;
  }

  // --- what changes

  fold({ life }) {
    if (life) {
      if (!this.sorting) {
        const rest = Math.max(0, (this.sorted ?? 0) + LATEST - performance.now());
        this.sorting = setTimeout(() => { this.sorting = 0; this.sort(); this.render(); this.tally(); }, rest);
      }
    }
    this.render();
  }

  filter() {
    this.scroll.scrollTop = 0;
    this.at = 0;
    this.address();
    this.sort();
    this.render();
  }

  address() {
    const query = new URLSearchParams();
    if (this.search.value) query.set("q", this.search.value);
    if (this.state) query.set("state", this.state);
    if (this.wanted) query.set("queue", this.wanted);
    history.replaceState(null, "", new URL(query.size ? `.?${query}` : ".", document.baseURI));
  }

  /** Put the tasks in order. Whoever has scrolled down keeps the order that he sees, and is told what is new. */
  sort() {
    const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = (task) => (!this.state || task.state === this.state) && (!this.wanted || task.queue === this.wanted) && words.every((word) => task.text.includes(word));
    const key = `${words} ${this.state} ${this.wanted}`;
    const holds = key === this.fitted && this.scroll.scrollTop > this.height;
    this.fitted = key;
    this.sorted = performance.now();
    const found = [];
    for (const task of this.store.tasks.values()) if (fits(task)) found.push(task);
    if (holds) {
      const listed = new Set(this.order);
      const left = this.order.filter((task) => this.store.tasks.get(task.id) === task);
      this.news = found.reduce((sum, task) => sum + !listed.has(task), 0);
      this.order = left.length || !found.length ? left : found;
    } else {
      this.news = 0;
      for (const task of found) task.rank = ENDS.has(task.state) ? 1e12 - task.ended : task.started || 1e11 + task.number;
      this.order = found.sort((a, b) => a.rank - b.rank || b.number - a.number);
    }
    this.fresh.hidden = !this.news;
    if (this.news) this.fresh.replaceChildren(icon("up"), `${number(this.news)} new`);
    this.at = Math.max(0, Math.min(this.at, this.order.length - 1));
    this.tally();
  }

  tally() {
    const { counts, tasks, view } = this.store;
    for (const chip of this.chips) {
      const state = chip.dataset.state;
      say(chip.count, number(state ? counts[state] ?? 0 : tasks.size));
      set(chip, "aria-pressed", String(state === this.state));
      chip.hidden = Boolean(state && !counts[state] && state !== this.state && !["running", "succeeded", "failed"].includes(state));
    }
    say(this.stats.running, number(Math.max(counts.running ?? 0, view.queues.reduce((sum, each) => sum + each.running, 0))));
    say(this.stats.queued, number(view.queues.reduce((sum, each) => sum + each.pending + each.delayed + each.blocked, 0)));
    say(this.stats.succeeded, number(Math.max(counts.succeeded ?? 0, view.ends.succeeded ?? 0)));
    const bad = ["failed", "lost"].reduce((sum, state) => sum + Math.max(counts[state] ?? 0, view.ends[state] ?? 0), 0);
    say(this.stats.bad, number(bad));
    this.stats.bad.parentNode.dataset.some = bad ? "yes" : "no";
    const names = [...new Set([...view.queues.map((each) => each.queue), ...(this.wanted ? [this.wanted] : [])])];
    if (names.join() !== this.queues) {
      this.queues = names.join();
      this.queue.replaceChildren(h("option", { value: "" }, "All queues"), ...names.map((name) => h("option", { value: name }, name)));
    }
    this.queue.value = this.wanted ?? "";
    this.queue.hidden = names.length < 2;
    this.none.hidden = this.order.length > 0;
    if (!this.order.length) this.empty();
  }

  empty() {
    const { tasks, view, notes } = this.store;
    if (tasks.size) {
      this.none.replaceChildren(h("p", {}, "No task fits."), h("button", { type: "button", onclick: () => { this.search.value = ""; this.state = this.wanted = ""; this.filter(); } }, "Show all"));
    } else {
      const hint = view.workers.length || !notes.place ? "Tasks appear here once they start." : "No worker takes tasks here: start one with revolve worker.";
      this.none.replaceChildren(h("p", {}, this.store.linked === "live" ? "No tasks yet" : "Looking…"), h("small", {}, hint));
    }
  }

  summary() {
    const { rates } = this.store.view;
    const rate = this.store.rate();
    say(this.stats.rate, rate >= 10 ? number(Math.round(rate)) : rate.toFixed(1));
    const most = Math.max(4, ...rates.map(([good, bad]) => good + bad));
    const path = (heights) => heights.map(([place, from, to]) => `M${place * 2} ${40 - (from / most) * 38}V${40 - (to / most) * 38}`).join("");
    const first = 120 - rates.length;
    const good = rates.map(([ok], place) => [first + place + 0.5, 0, ok]).filter(([, , to]) => to);
    const bad = rates.map(([ok, no], place) => [first + place + 0.5, ok, ok + no]).filter(([, from, to]) => to > from);
    this.spark.replaceChildren(svg("path", { d: path(good), class: "good" }), svg("path", { d: path(bad), class: "bad" }));
    this.tally();
  }

  // --- drawing

  render(all) {
    const { order, height, room, pool } = this;
    const top = this.scroll.scrollTop;
    const first = Math.max(0, Math.floor(top / height) - SPARE);
    const last = Math.min(order.length, Math.ceil((top + room) / height) + SPARE);
    const size = `${order.length * height}px`;
    if (this.space.style.height !== size) this.space.style.height = size;
    set(this.grid, "aria-rowcount", order.length + 1);
    const used = new Map();
    const free = [];
    for (const row of pool) {
      const task = order[row.index];
      if (row.index >= first && row.index < last && task === row.task) used.set(row.index, row);
      else free.push(row);
    }
    const now = this.store.now();
    for (let index = first; index < last; index++) {
      let row = used.get(index);
      if (!row) {
        row = free.pop();
        if (!row) { row = this.row(); pool.push(row); }
        row.index = index;
        row.task = order[index];
        row.element.hidden = false;
        row.element.style.transform = `translateY(${index * height}px)`;
        set(row.element, "aria-rowindex", index + 2);
        set(row.link, "href", `task/${encodeURIComponent(row.task.id)}`);
      }
      this.draw(row, now);
    }
    for (const row of free) {
      if (row.index >= 0) { row.index = -1; row.task = null; row.element.hidden = true; }
    }
    this.rove();
    this.store.see(order.slice(first, last).map((task) => task.id));
  }

  draw(row, now) {
    const task = row.task;
    const [name, module] = named(task.name);
    const ended = ENDS.has(task.state);
    row.pill.show(task.state);
    say(row.name, name);
    say(row.more, `${module ? `${module} · ` : ""}${task.id.slice(-12)}${task.attempt > 1 ? ` · attempt ${task.attempt}` : ""}`);
    row.bar.show(task.progress, task.state);
    const progress = task.progress;
    say(row.percent, task.state === "succeeded" ? "" : percent(progress?.[0]));
    const words = ended && task.reason ? task.reason : [counted(progress?.[1], progress?.[2]), progress?.[3]].filter(Boolean).join(" · ");
    say(row.words, words);
    row.words.hidden = !words;
    say(row.queue, task.queue);
    say(row.worker, task.worker);
    say(row.took, task.started ? span((ended ? task.ended : now) - task.started) : "");
    say(row.when, ended ? ago(now - task.ended) : "");
    const can = this.store.notes.can;
    const act = !ended && can.includes("stop") ? "stop" : task.buried && can.includes("retry") ? "retry" : "";
    if (row.acts !== act) {
      row.acts = act;
      row.act.hidden = !act;
      if (act) row.act.replaceChildren(icon(act));
    }
    if (act) set(row.act, "aria-label", `${act === "stop" ? "Stop" : "Try again"} ${name}`);
    row.element.dataset.state = task.state;
  }

  rove() {
    for (const row of this.pool) set(row.link, "tabindex", row.index === this.at ? 0 : -1);
  }

  // --- what is done

  key(event, typing) {
    const { key } = event;
    if (key === "/") { this.search.focus(); this.search.select(); return true; }
    if (key === "Escape") {
      if (typing && this.search.value) { this.search.value = ""; this.filter(); return true; }
      if (typing) { this.focused().focus(); return true; }
      if (this.state || this.wanted || this.search.value) { this.state = this.wanted = this.search.value = ""; this.filter(); return true; }
      return false;
    }
    const step = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity }[key];
    if (step) { this.move(step); return true; }
    const task = this.order[this.at];
    if ((key === "s" || key === "r") && task) { this.act(task, key === "s" ? "stop" : "retry"); return true; }
    return false;
  }

  move(step) {
    const inside = this.space.contains(document.activeElement);
    this.at = inside ? Math.max(0, Math.min(this.order.length - 1, this.at + step)) : Math.min(this.at, this.order.length - 1);
    if (this.at < 0) return;
    const top = this.at * this.height;
    if (top < this.scroll.scrollTop) this.scroll.scrollTop = top;
    else if (top + this.height > this.scroll.scrollTop + this.room) this.scroll.scrollTop = top + this.height - this.room;
    this.render();
    this.focused().focus({ preventScroll: true });
  }

  async act(task, what) {
    what ??= ENDS.has(task.state) ? "retry" : "stop";
    if (!this.store.notes.can.includes(what) || (what === "stop" ? ENDS.has(task.state) : !task.buried)) return;
    await perform(this.store, task.id, named(task.name)[0], what);
  }
}

/** Stop a task or try it again, after a question; the id of the new one. */
export async function perform(store, id, name, what) {
  const words = what === "stop"
    ? { title: `Stop ${name}?`, text: "It is told to stop, and made to if it does not heed that.", yes: "Stop it", danger: true }
    : { title: `Run ${name} again?`, text: "It gets the same arguments, and an id of its own.", yes: "Run it again" };
  if ((await ask(words)) === null) return null;
  const said = await store.act(id, what);
  if (said.error) toast(`Could not ${what === "stop" ? "stop" : "retry"} it: ${said.error}`, "bad");
  else toast(what === "stop" ? `${name} is being stopped` : `${name} runs again`);
  return said.id ?? null;
}
