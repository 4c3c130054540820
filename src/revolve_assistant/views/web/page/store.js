// What the page knows: one stream a tab, folded into rows. Views listen for "rows", "view", "told", "link".
import { ENDS } from "./dom.js";

const PLACES = ["id", "name", "queue", "worker", "state", "attempt", "progress", "started", "ended", "buried", "reason"];
const HIDDEN = 20000; // ms after which a tab that nobody sees lets go of its stream

export class Store extends EventTarget {
  constructor() {
    super();
    this.tasks = new Map();
    this.counts = {};
    this.notes = { can: [], show: [], place: "", namespace: "", all: true };
    this.view = { workers: [], queues: [], ends: {}, rates: [], trouble: "", dropped: 0 };
    this.said = []; // of the one task that is shown, in order
    this.only = null; // undefined stream: null; the list: ""
    this.since = "";
    this.offset = 0; // of the server's clock, seconds
    this.source = null;
    this.seen = "";
    document.addEventListener("visibilitychange", () => {
      clearTimeout(this.leaving);
      if (document.hidden) this.leaving = setTimeout(() => this.drop(), HIDDEN);
      else if (!this.source && this.only !== null) this.join();
    });
  }

  now() { return Date.now() / 1000 + this.offset; }

  /** Have the stream of the list ("") or of one task. */
  want(only) {
    if (only === this.only && this.source) return;
    this.only = only;
    this.join();
  }

  drop() {
    this.source?.close();
    this.source = null;
    this.viewer = null;
    clearTimeout(this.seeing);
  }

  join() {
    this.drop();
    this.said = [];
    this.link("joining");
    const query = new URLSearchParams(this.only ? { task: this.only } : this.since ? { since: this.since } : {});
    const source = (this.source = new EventSource(new URL(`api/stream?${query}`, document.baseURI)));
    const heard = (name, take) => source.addEventListener(name, (event) => {
      if (this.source === source) take(JSON.parse(event.data), event);
    });
    heard("hello", (notes) => {
      this.notes = notes;
      this.viewer = notes.viewer;
      this.seen = "";
      if (this.only) { this.said = []; this.fire("again"); } // it is all told once more
      this.link("live");
      this.fire("notes");
    });
    heard("rows", (found, event) => {
      if (!this.only && event.lastEventId) this.since = event.lastEventId;
      this.fold(found);
    });
    heard("view", (view) => {
      this.view = view;
      if (view.clock) this.offset = Math.abs(view.clock - Date.now() / 1000) > 2 ? view.clock - Date.now() / 1000 : 0;
      this.fire("view");
    });
    heard("told", (found) => {
      this.said.push(...found);
      if (this.said.length > 20000) this.said.splice(0, this.said.length - 20000);
      this.fire("told", found);
    });
    source.onerror = () => {
      if (this.source !== source) return;
      if (source.readyState === EventSource.CLOSED) this.refused(source);
      else this.link("lost");
    };
  }

  async refused(source) { // the server answered, and not with a stream
    const answer = await fetch(source.url, { headers: { Accept: "application/json" } }).catch(() => null);
    answer?.body?.cancel();
    if (answer?.status === 401) return location.reload();
    this.link(answer && answer.status === 403 ? "refused" : "lost");
    if (!answer || answer.status !== 403) setTimeout(() => this.source === source && this.join(), 2000);
  }

  fold({ rows, gone, whole }) {
    if (whole) { this.tasks.clear(); this.counts = {}; }
    const fresh = [];
    let life = whole || gone.length > 0;
    for (const id of gone) {
      const old = this.tasks.get(id);
      if (old) { this.count(old.state, -1); this.tasks.delete(id); }
    }
    for (const row of rows) {
      const old = this.tasks.get(row[0]);
      if (old) {
        if (old.state !== row[4]) { this.count(old.state, -1); this.count(row[4], 1); life = true; }
        for (let place = 1; place < PLACES.length; place++) old[PLACES[place]] = row[place];
        continue;
      }
      const task = { order: 0 };
      for (let place = 0; place < PLACES.length; place++) task[PLACES[place]] = row[place];
      task.number = this.next = (this.next ?? 0) + 1;
      task.text = `${task.name} ${task.id}`.toLowerCase();
      this.tasks.set(task.id, task);
      this.count(task.state, 1);
      fresh.push(task);
      life = true;
    }
    this.fire("rows", { life, fresh, rows });
  }

  count(state, by) { this.counts[state] = (this.counts[state] ?? 0) + by; }

  link(state) { this.linked = state; this.fire("link"); }

  fire(name, detail) { this.dispatchEvent(new CustomEvent(name, { detail })); }

  /** Say which tasks are on the screen: their progress is told, that of others is not. */
  see(ids) {
    const key = ids.join();
    if (!this.viewer || key === this.seen) return;
    this.seen = key;
    clearTimeout(this.seeing);
    this.seeing = setTimeout(() => this.post("api/see", { viewer: this.viewer, ids }).catch(() => {}), 60);
  }

  async post(path, body) {
    return fetch(new URL(path, document.baseURI), {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Revolve-Act": "1" },
      body: JSON.stringify(body),
    });
  }

  /** Stop, retry or answer; what the server says to it, or an error to be shown. */
  async act(id, what, body = {}) {
    try {
      const answer = await this.post(`api/task/${encodeURIComponent(id)}/${what}`, body);
      const said = await answer.json();
      return answer.ok ? said : { error: said.error ?? `the server said ${answer.status}` };
    } catch {
      return { error: "the server does not answer" };
    }
  }

  rate() { // ends a second, over the last ten
    const rates = this.view.rates.slice(-10);
    return rates.reduce((sum, [good, bad]) => sum + good + bad, 0) / 10;
  }

  open() { return [...this.tasks.values()].filter((task) => !ENDS.has(task.state)).length; }
}
