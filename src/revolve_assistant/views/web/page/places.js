// Workers and queues.
import { ago, h, named, number, say, span } from "./dom.js";

class Places {
  constructor(store) {
    this.store = store;
    this.body = h("div.cards");
    this.element = h("section.places", { "aria-label": this.title }, h("h1", {}, this.title, (this.count = h("span.count"))), this.body);
    this.hear = () => this.draw();
  }

  enter() {
    this.store.addEventListener("view", this.hear);
    this.clock = setInterval(this.hear, 1000);
    this.draw();
  }

  leave() {
    this.store.removeEventListener("view", this.hear);
    clearInterval(this.clock);
  }

  key(event) {
    if (event.key !== "Escape") return false;
    history.back();
    return true;
  }

  fact(name, value) { return h("div", {}, h("dt", {}, name), h("dd", {}, value)); }

  meter(label, parts, most) {
    const filled = parts.filter(([, value]) => value > 0);
    return h("div.stack", { role: "img", "aria-label": `${label}: ${filled.map(([name, value]) => `${number(value)} ${name}`).join(", ") || "nothing"}` },
      filled.map(([name, value]) => {
        const part = h("span", { data: { part: name } });
        part.style.flexGrow = String(value / Math.max(1, most));
        return part;
      }), (() => {
        const rest = h("span.rest");
        rest.style.flexGrow = String(Math.max(0, 1 - filled.reduce((sum, [, value]) => sum + value, 0) / Math.max(1, most)));
        return rest;
      })());
  }

  /** Cards by their keys: those that are there are changed, so that what is focused stays. */
  put(keyed) {
    const old = new Map([...this.body.children].map((card) => [card.dataset.key, card]));
    const cards = keyed.map(([key, print, make]) => {
      const card = old.get(key);
      if (card && card.print === print) return card;
      const made = make();
      made.dataset.key = key;
      made.print = print;
      return made;
    });
    if (cards.length !== this.body.children.length || cards.some((card, place) => this.body.children[place] !== card)) this.body.replaceChildren(...cards);
    say(this.count, number(keyed.length));
  }
}

export class Workers extends Places {
  get title() { return "Workers"; }

  draw() {
    const { workers } = this.store.view;
    const now = this.store.now();
    if (!workers.length) {
      this.body.replaceChildren(h("div.none", {}, h("p", {}, "No worker takes tasks here"), h("small", {}, "Start one: ", h("code", {}, "revolve worker URL"))));
      say(this.count, "0");
      return;
    }
    this.put(workers.map((worker) => {
      const since = Math.floor((now - worker.started) / (now - worker.started > 120 ? 60 : 5));
      return [worker.name, JSON.stringify([worker, since]), () => this.card(worker, now)];
    }));
  }

  card(worker, now) {
    return h("article.card.worker", { data: { state: worker.state } },
      h("header", {}, h("h2", {}, worker.name), h("span.tag", { data: { state: worker.state } }, worker.state || "unknown")),
      h("div.load", {}, this.meter("Load", [["running", worker.running]], worker.concurrency || worker.running),
        h("span", {}, worker.concurrency ? `${number(worker.running)} of ${number(worker.concurrency)} busy` : `${number(worker.running)} running`)),
      h("dl.facts", {}, this.fact("Queues", worker.queues.join(", ") || "–"), this.fact("Pool", worker.pool || "–"),
        this.fact("Ended a second", worker.rate.toFixed(1)), this.fact("Ended", number(worker.settled)),
        this.fact("Up", worker.started ? span(now - worker.started) : "–"), this.fact("Version", worker.version || "–")),
      worker.tasks.length > 0 && h("ul.runs", { "aria-label": `Tasks that ${worker.name} runs` }, worker.tasks.map(([id, name, since]) =>
        h("li", {}, h("a", { href: `task/${encodeURIComponent(id)}`, "data-go": true }, named(name)[0]), h("small", {}, ago(now - since))))),
      worker.running > worker.tasks.length && worker.tasks.length > 0 && h("small", {}, `and ${number(worker.running - worker.tasks.length)} more`));
  }
}

export class Queues extends Places {
  get title() { return "Queues"; }

  draw() {
    const { queues } = this.store.view;
    if (!queues.length) {
      this.body.replaceChildren(h("div.none", {}, h("p", {}, "No task waits, and nobody takes any")));
      say(this.count, "0");
      return;
    }
    const most = Math.max(1, ...queues.map((each) => each.pending + each.delayed + each.blocked + each.running));
    this.put(queues.map((queue) => [queue.queue, JSON.stringify([queue, most]), () => this.card(queue, most)]));
  }

  card(queue, most) {
    const parts = [["running", queue.running], ["pending", queue.pending], ["delayed", queue.delayed], ["blocked", queue.blocked]];
    return h("article.card.queue", {},
      h("header", {}, h("h2", {}, h("a", { href: `.?queue=${encodeURIComponent(queue.queue)}`, "data-go": true }, queue.queue)),
        h("span.tag", { data: { state: queue.workers ? "running" : "none" } }, queue.workers ? `${number(queue.workers)} worker${queue.workers > 1 ? "s" : ""}` : "no worker")),
      this.meter(queue.queue, parts, most),
      h("dl.facts", {}, this.fact("Running", number(queue.running)), this.fact("Pending", number(queue.pending)),
        this.fact("Delayed", number(queue.delayed)), this.fact("Held back", number(queue.blocked)),
        this.fact("Buried", number(queue.buried)), this.fact("Oldest waits", queue.oldest ? span(queue.oldest) : "–")));
  }
}
