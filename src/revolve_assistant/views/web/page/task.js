// One task: where it is, what it says, what happened to it, what can be done.
import { ENDS, LABELS, at, ask, bar, counted, dated, h, icon, named, number, percent, pill, say, set, span, toast } from "./dom.js";
import { perform } from "./list.js";

const LINES = 5000; // of output that stay on the page
const BLOCK = 100; // lines that are laid out together, or not at all while they are out of sight
const STEPS = 400; // of the timeline
const SPOKEN = new Set(["output", "error_output", "log", "item"]);

export class TaskPage {
  constructor(store, id, go) {
    this.store = store;
    this.id = id;
    this.go = go;
    this.title = "Task";
    this.follows = true;
    this.build();
    this.reset();
    this.hear = { rows: () => this.draw(), told: (event) => this.take(event.detail), notes: () => this.draw(), again: () => this.reset(), link: () => this.draw() };
  }

  enter() {
    for (const [name, fn] of Object.entries(this.hear)) this.store.addEventListener(name, fn);
    this.clock = setInterval(() => this.draw(), 500);
    this.draw();
    this.arguments();
  }

  leave() {
    for (const [name, fn] of Object.entries(this.hear)) this.store.removeEventListener(name, fn);
    clearInterval(this.clock);
  }

  focused() { return this.heading; }

  build() {
    const fact = (key, label) => h("div", {}, h("dt", {}, label), (this.facts[key] = h("dd", {}, "–")));
    this.facts = {};
    this.heading = h("h1", { tabindex: -1 }, "…");
    this.module = h("span.module");
    this.pill = pill("pending");
    this.bar = bar("progress of the task");
    this.percent = h("strong.percent");
    this.words = h("span.words");
    this.eta = h("span.eta");
    this.stop = h("button.danger", { type: "button", hidden: true, onclick: () => perform(this.store, this.id, this.name, "stop") }, icon("stop"), "Stop");
    this.again = h("button", { type: "button", hidden: true, onclick: () => this.retry() }, icon("retry"), "Run again");
    this.answering = h("button", { type: "button", hidden: true, onclick: () => this.answer() }, icon("ask"), "Answer");
    this.question = h("section.card.question", { hidden: true, "aria-label": "A question" });
    this.note = h("div.card.note", { hidden: true, role: "alert" });
    this.output = h("div.tail", { tabindex: 0, role: "log", "aria-live": "off", "aria-label": "Output", data: { wrap: "yes" } });
    this.jump = h("button.fresh", { type: "button", hidden: true, onclick: () => this.toEnd() });
    this.wrap = h("button.icon", { type: "button", "aria-pressed": "true", "aria-label": "Wrap long lines", onclick: () => {
      const wraps = this.output.dataset.wrap !== "yes";
      this.output.dataset.wrap = wraps ? "yes" : "no";
      set(this.wrap, "aria-pressed", String(wraps));
    } }, icon("wrap"));
    this.lines = h("span.count");
    this.quiet = h("p.hint", {}, "Nothing was said yet.");
    this.steps = h("ol.steps");
    this.runs = h("ol.attempts");
    this.args = h("div.value");
    this.result = h("div.value");
    this.outcome = h("section.card.outcome", { hidden: true }, (this.outcomeTitle = h("h2", {}, "Result")), this.result);
    this.output.addEventListener("scroll", () => {
      const follows = this.output.scrollHeight - this.output.scrollTop - this.output.clientHeight < 24;
      if (follows !== this.follows) { this.follows = follows; this.missed = 0; this.paused(); }
    }, { passive: true });
    const copy = h("button.icon", { type: "button", "aria-label": "Copy the id", onclick: async () => {
      try { await navigator.clipboard.writeText(this.id); toast("The id is copied"); } catch { toast(this.id); }
    } }, icon("copy"));
    this.element = h("section.task", { "aria-label": "Task" },
      h("a.back", { href: ".", "data-go": true }, icon("back"), "Tasks"),
      h("header.hero.card", {},
        h("div.who", {}, h("div", {}, this.heading, this.module), this.pill, h("div.acts", {}, this.answering, this.again, this.stop)),
        h("div.meter", {}, this.bar, this.percent), h("div.below", {}, this.words, this.eta),
        h("dl.facts", {}, h("div.id", {}, h("dt", {}, "Id"), h("dd", {}, h("code", {}, this.id), copy)), fact("queue", "Queue"), fact("worker", "Worker"),
          fact("attempt", "Attempt"), fact("started", "Started"), fact("took", "Runs for"))),
      this.note, this.question,
      h("div.columns", {},
        h("div", {}, this.outcome,
          h("section.card.said", { "aria-label": "Output" }, h("header", {}, h("h2", {}, "Output"), this.lines, this.wrap), this.quiet, this.output, this.jump)),
        h("div", {},
          h("section.card", { "aria-label": "Attempts" }, h("h2", {}, "Attempts"), this.runs),
          h("section.card", { "aria-label": "Timeline" }, h("h2", {}, "Timeline"), this.steps),
          h("section.card", { "aria-label": "Arguments" }, h("h2", {}, "Arguments"), this.args))));
  }

  reset() {
    this.attempts = new Map(); // number -> {started, ended, end, worker, blocks: [element], count}
    this.shown = 0; // the attempt whose output is shown
    this.latest = 0;
    this.asked = null;
    this.progress = null;
    this.marks = []; // (time, fraction) lately
    this.step = null;
    this.missed = 0;
    this.end = null;
    this.over = false;
    this.begun = performance.now();
    this.unheard = "";
    this.steps.replaceChildren();
    this.output.replaceChildren();
    this.runs.replaceChildren();
    this.outcome.hidden = true;
    this.draw();
  }

  get name() { return named(this.task?.name ?? "")[0]; }
  get task() { return this.store.tasks.get(this.id); }

  // --- what it says

  take(found) {
    this.said = false;
    for (const each of found) this.one(each);
    this.draw();
    if (this.said) this.append();
  }

  attempt(number) {
    let known = this.attempts.get(number);
    if (!known) {
      known = { blocks: [], count: 0, kept: 0 };
      this.attempts.set(number, known);
      if (number > this.latest) {
        if (this.shown === this.latest) { this.shown = number; this.output.replaceChildren(); this.missed = 0; } // a new attempt replaces
        this.latest = number;
        this.progress = null;
        this.marks = [];
      }
    }
    return known;
  }

  one(each) {
    const { event, attempt: number_ } = each;
    if (event === "over") { this.over = true; return; }
    if (event === "unheard") { this.unheard = each.reason; return; }
    if (event === "skipped") { this.line(this.attempt(this.latest || 1), "gap", `… ${number(each.count)} lines were left out here: they came faster than this page`); return; }
    const attempt = this.attempt(number_ || 1);
    if (!each.time && performance.now() - this.begun > 1500) each.time = this.store.now(); // nobody says when, but it is now
    const { time } = each;
    if (event !== "question" && this.asked && time > this.asked.time) this.asked = null; // who asks waits: it was answered
    if (event === "progress") {
      this.progress = each.progress;
      if (each.progress[0] != null) {
        this.marks.push([time, each.progress[0]]);
        if (this.marks.length > 200) this.marks.splice(0, 100);
      }
      return;
    }
    if (each.lines) for (const text of each.lines) this.line(attempt, event, each.level ? `${each.level} ${text}` : text, each.level);
    else if (event === "gap") this.line(attempt, "gap", `… ${number(each.count)} events are missing here`);
    else if (event === "question") { this.asked = each; this.line(attempt, "question", each.text); }
    if (event === "started") {
      attempt.started = time;
      attempt.worker = each.worker;
      const before = this.attempts.get(number_ - 1);
      if (before && !before.ended) before.ended = time;
    }
    if (event === "retrying" || ENDS.has(event)) {
      attempt.ended = time || 0;
      attempt.end = event;
      if (ENDS.has(event)) { this.end = each; this.show(each); }
    }
    this.happened(each);
  }

  line(attempt, kind, text, level) {
    const element = h("div.ln", { data: { kind, ...(level ? { level: level.toLowerCase() } : {}) } }, text.replace(/\n$/, "") || " ");
    const shows = attempt === this.attempts.get(this.shown);
    let block = attempt.blocks[attempt.blocks.length - 1];
    if (!block || block.childElementCount >= BLOCK) {
      attempt.blocks.push((block = h("div.block")));
      if (shows) this.output.append(block);
    }
    block.append(element);
    attempt.count += 1;
    attempt.kept += 1;
    while (attempt.kept > LINES && (this.follows || !shows || attempt.kept > 4 * LINES)) {
      const old = attempt.blocks.shift();
      attempt.kept -= old.childElementCount;
      old.remove();
    }
    if (shows) {
      this.said = true;
      this.missed += this.follows ? 0 : 1;
    }
  }

  append() {
    if (this.follows) this.output.scrollTop = this.output.scrollHeight;
    this.paused();
  }

  paused() {
    this.jump.hidden = this.follows;
    if (!this.follows) this.jump.replaceChildren(icon("down"), this.missed ? `${number(this.missed)} new lines` : "Follow");
  }

  toEnd() {
    this.follows = true;
    this.missed = 0;
    this.output.scrollTop = this.output.scrollHeight;
    this.paused();
    this.output.focus({ preventScroll: true });
  }

  /** Show the output of an attempt. */
  choose(number) {
    this.shown = number;
    this.output.replaceChildren(...(this.attempts.get(number)?.blocks ?? []));
    this.toEnd();
    this.draw();
  }

  // --- what happened

  happened(each) {
    const { event, attempt, time } = each;
    const last = this.step;
    const count = each.lines?.length ?? each.count ?? 1;
    if (last && last.event === event && last.attempt === attempt && (SPOKEN.has(event) || (each.args == null && !LABELS[event] && event !== "started" && event !== "question" && event !== "gap"))) {
      last.count += count;
      say(last.words, this.told(each, last.count));
      return;
    }
    const words = h("span.what", {}, this.told(each, count));
    const element = h("li", { data: { event: LABELS[event] ? event : SPOKEN.has(event) ? "said" : event === "started" || event === "question" ? event : "own" } },
      h("b", {}, event.replace("_", " ")), words, time ? h("time", { title: dated(time), datetime: new Date(time * 1000).toISOString() }, at(time)) : "");
    this.step = { event, attempt, count, words };
    this.steps.append(element);
    if (this.steps.childNodes.length > STEPS) this.steps.firstChild.remove();
  }

  told(each, count) {
    const { event } = each;
    if (SPOKEN.has(event)) return `${number(count)} ${event === "item" ? "value" : "line"}${count === 1 ? "" : "s"}`;
    if (event === "started") return `attempt ${each.attempt}${each.worker ? ` on ${each.worker}` : ""}`;
    if (event === "retrying") return [each.reason, each.delay ? `again in ${span(each.delay)}` : "again"].filter(Boolean).join(", ");
    if (event === "waiting") return each.reason ?? "";
    if (event === "question") return each.text;
    if (event === "gap") return `${number(each.count)} events`;
    if (event === "cancelled") return each.rung ? `by ${each.rung}` : "";
    if (ENDS.has(event)) return each.error?.headline ?? "";
    return each.args ? each.args.join(", ") : count > 1 ? `× ${number(count)}` : "";
  }

  show(end) {
    const { event } = end;
    const shows = this.store.notes.show;
    this.outcome.hidden = event === "cancelled";
    this.outcome.dataset.state = event;
    say(this.outcomeTitle, event === "succeeded" ? "Result" : "Error");
    if (event === "succeeded") this.result.replaceChildren(end.result != null ? h("pre", { tabindex: 0, "aria-label": "result" }, end.result) : hidden("results", shows));
    else if (end.error) {
      this.result.replaceChildren(h("p.headline", {}, end.error.headline),
        end.error.traceback ? h("pre", { tabindex: 0, "aria-label": "traceback" }, end.error.traceback) : "");
    } else this.result.replaceChildren(hidden("errors", shows));
  }

  async arguments() {
    this.args.replaceChildren(h("p.hint", {}, "…"));
    const path = new URL(`api/task/${encodeURIComponent(this.id)}`, document.baseURI);
    const found = await fetch(path).then((answer) => answer.json()).catch(() => ({ why: "the server does not answer" }));
    if (found.arguments) {
      this.args.replaceChildren(found.arguments.length
        ? h("dl", {}, found.arguments.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, h("pre", { tabindex: 0, "aria-label": `argument ${name}` }, value)))))
        : h("p.hint", {}, "It takes none."));
    } else this.args.replaceChildren(found.why === "hidden" ? hidden("arguments") : h("p.hint", {}, found.why ?? found.error));
  }

  // --- drawing

  draw() {
    const { task, store } = this;
    const now = store.now();
    const known = this.attempts.get(this.latest);
    const state = task?.state ?? (this.end ? this.end.event : known?.started ? "running" : "pending");
    const ended = ENDS.has(state);
    const [name, module] = named(task?.name ?? "");
    const lost = !task && this.end?.event === "lost" && !known?.started; // nobody knows it
    say(this.heading, lost ? "Unknown task" : task ? name : "Task");
    say(this.module, module);
    document.title = `${task ? name : "Task"} · Revolve`;
    this.note.hidden = !(lost || this.unheard || store.linked === "refused");
    if (!this.note.hidden) say(this.note, store.linked === "refused" ? "You may not see this task." : this.unheard || "Nobody knows a task with this id, or it is kept no longer.");
    this.pill.show(state);
    const progress = newer(this.progress, task?.progress);
    this.bar.show(progress, state);
    say(this.percent, state === "succeeded" ? "100%" : percent(progress?.[0]));
    say(this.words, [counted(progress?.[1], progress?.[2]), progress?.[3]].filter(Boolean).join(" · "));
    say(this.eta, ended ? "" : this.left(now));
    const started = known?.started ?? task?.started ?? 0;
    const until = ended ? task?.ended || known?.ended || 0 : now;
    say(this.facts.queue, task?.queue || "–");
    say(this.facts.worker, task?.worker || known?.worker || "–");
    say(this.facts.attempt, String(Math.max(task?.attempt ?? 0, this.latest) || "–"));
    say(this.facts.started, started ? dated(started) : "–");
    say(this.facts.took.previousSibling, ended ? "Took" : "Runs for");
    say(this.facts.took, started && until ? span(until - started) : "–");
    const can = store.notes.can;
    this.stop.hidden = ended || lost || !can.includes("stop");
    this.again.hidden = !(task?.buried && can.includes("retry"));
    this.questions(ended, can);
    this.answering.hidden = ended || !this.everAsked || Boolean(this.asking) || !can.includes("answer");
    const shown = this.attempts.get(this.shown);
    this.quiet.hidden = Boolean(shown?.count);
    this.output.hidden = !shown?.count;
    say(this.lines, shown?.count ? `${number(shown.count)} line${shown.count === 1 ? "" : "s"}` : "");
    this.drawRuns(now, ended);
  }

  questions(ended, can) {
    const asked = ended || !can.includes("answer") ? null : this.asked;
    if (asked) this.everAsked = true;
    if (asked === this.asking) return;
    this.asking = asked;
    this.question.hidden = !asked;
    if (!asked) { this.question.replaceChildren(); return; }
    const field = h("input", { "aria-label": asked.text, autocomplete: "off", maxlength: 10000 });
    const button = h("button.primary", { type: "submit" }, "Answer");
    this.question.replaceChildren(h("h2.wrap", {}, asked.text), h("form", { onsubmit: async (event) => {
      event.preventDefault();
      button.disabled = true;
      const said = await this.store.act(this.id, "answer", { text: field.value });
      if (said.error) { toast(`Could not answer: ${said.error}`, "bad"); button.disabled = false; }
      else { this.asked = null; toast("Answered"); this.draw(); }
    } }, field, button));
  }

  async answer() {
    const text = await ask({ title: "Answer", text: "It goes to the question that the task asks now or next.", yes: "Answer", field: "Answer" });
    if (text === null) return;
    const said = await this.store.act(this.id, "answer", { text });
    toast(said.error ? `Could not answer: ${said.error}` : "Answered", said.error ? "bad" : "");
  }

  async retry() {
    const id = await perform(this.store, this.id, this.name, "retry");
    if (id) this.go(`task/${encodeURIComponent(id)}`);
  }

  left(now) {
    const recent = this.marks.filter(([time]) => time > now - 60);
    if (recent.length < 2) return "";
    const [[from, low], [to, high]] = [recent[0], recent[recent.length - 1]];
    if (high <= low || to - from < 1) return "";
    const seconds = ((1 - high) * (to - from)) / (high - low) - (now - to);
    return seconds > 0.5 && seconds < 864000 ? `about ${span(seconds)} left` : "";
  }

  drawRuns(now, ended) {
    const print = [...this.attempts].map(([number, each]) => `${number}${each.end ?? ""}${each.worker}`).join() + this.shown + ended;
    if (print !== this.printed) {
      this.printed = print;
      const several = this.attempts.size > 1;
      this.runs.replaceChildren(...[...this.attempts].filter(([, each]) => each.started || each.end).map(([number, each]) => {
        const took = h("small");
        const words = [h("b", {}, `${number}`), pill(each.end ?? "running"), h("small", {}, each.worker ?? ""), took];
        const item = h("li", {}, several ? h("button", { type: "button", "aria-pressed": String(number === this.shown), "aria-label": `Output of attempt ${number}`, onclick: () => this.choose(number) }, words) : h("span", {}, words));
        item.tick = (time) => say(took, each.started && (each.ended || !each.end) ? span((each.ended || time) - each.started) : "");
        return item;
      }));
      if (!this.runs.childNodes.length) this.runs.append(h("li.hint", {}, "It has not begun."));
    }
    for (const item of this.runs.children) item.tick?.(now);
  }

  // --- keys

  key(event, typing) {
    if (event.key === "Escape") {
      if (typing) { event.target.blur(); return true; }
      this.go(".");
      return true;
    }
    if (event.key === "s" && !this.stop.hidden) this.stop.click();
    else if (event.key === "r" && !this.again.hidden) this.again.click();
    else if (event.key === "f") this.toEnd();
    else if (event.key === "a" && !this.question.hidden) this.question.querySelector("input").focus();
    else return false;
    return true;
  }
}

function newer(one, other) { // what the task says itself comes with its lines; its row may be ahead or behind
  if (!one || !other) return one ?? other;
  return (other[0] ?? -1) > (one[0] ?? -1) || (other[1] ?? -1) > (one[1] ?? -1) ? other : one;
}

function hidden(what, shows) {
  if (shows?.includes(what)) return h("p.hint", {}, "There is none.");
  return h("p.hint", {}, `Hidden. Whoever starts the server can allow it: --show ${what}.`);
}
