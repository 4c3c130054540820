// <revolve-progress> and <revolve-output>: what a task says, live. Attributes: src (where Live is mounted), task, token;
// "act" adds Stop, and a field for answers. Elements of one task share one connection, which goes on after a break.
const streams = new Map();

function open(src, task, token) {
  const key = [src, task, token].join("\n");
  let stream = streams.get(key);
  if (stream) return stream;
  const query = new URLSearchParams({ task, token });
  const source = new EventSource(`${src}/events?${query}`);
  stream = { told: [], hearers: new Set(), close: () => { source.close(); streams.delete(key); } };
  const tell = (event) => {
    stream.told = event.event === "progress" ? stream.told.filter((each) => each.event !== "progress") : stream.told;
    stream.told.push(event);
    stream.hearers.forEach((hear) => hear(event));
  };
  source.onmessage = (message) => {
    const event = JSON.parse(message.data);
    tell(event);
    if (["succeeded", "failed", "cancelled", "lost"].includes(event.event)) source.close();
  };
  source.onerror = () => {
    if (source.readyState === EventSource.CLOSED) tell({ event: "refused" });
    else stream.hearers.forEach((hear) => hear({ event: "reconnecting" }));
  };
  streams.set(key, stream);
  return stream;
}

function make(tag, label) {
  const element = document.createElement(tag);
  if (label) element.setAttribute("aria-label", label);
  return element;
}

class Live extends HTMLElement {
  connectedCallback() {
    this.replaceChildren();
    this.draw();
    if (!("EventSource" in window)) return this.say("this browser shows no live progress");
    this.stream = open(this.getAttribute("src") ?? "/live", this.getAttribute("task"), this.getAttribute("token") ?? "");
    this.hear = this.hear.bind(this);
    this.stream.told.forEach(this.hear);
    this.stream.hearers.add(this.hear);
  }
  disconnectedCallback() {
    this.stream?.hearers.delete(this.hear);
    if (this.stream && !this.stream.hearers.size) this.stream.close();
  }
  say(text) {}
  async post(what, more) {
    const answer = await fetch(`${this.getAttribute("src") ?? "/live"}/${what}`, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Revolve-Token": this.getAttribute("token") ?? "" },
      body: JSON.stringify({ task: this.getAttribute("task"), ...more }),
    }).catch(() => null);
    return Boolean(answer?.ok);
  }
}

customElements.define("revolve-progress", class extends Live {
  draw() {
    this.bar = make("progress", "progress");
    this.bar.max = 1;
    this.words = make("span");
    this.words.setAttribute("role", "status");
    this.words.textContent = "waiting";
    this.append(this.bar, " ", this.words);
    if (!this.hasAttribute("act")) return;
    this.button = make("button");
    this.button.type = "button";
    this.button.textContent = "Stop";
    this.button.onclick = async () => {
      this.button.disabled = true;
      this.say("stopping");
      if (!(await this.post("stop"))) { this.button.disabled = false; this.say("could not be stopped"); }
    };
    this.append(" ", this.button);
  }
  say(text) { this.words.textContent = text; }
  hear(event) {
    const name = event.event;
    if (name === "progress") {
      if (event.fraction == null) this.bar.removeAttribute("value");
      else this.bar.value = event.fraction;
      const count = event.done == null ? "" : event.total == null ? `${event.done}` : `${event.done}/${event.total}`;
      const percent = event.fraction == null ? "" : `${Math.round(event.fraction * 100)}%`;
      this.say([percent, count, event.message].filter(Boolean).join(" "));
    } else if (name === "started" || name === "retrying") {
      this.bar.removeAttribute("value");
      this.say(name === "started" ? "running" : "trying again");
    } else if (["succeeded", "failed", "cancelled", "lost", "refused"].includes(name)) {
      if (name === "succeeded") this.bar.value = 1;
      else this.bar.value = this.bar.hasAttribute("value") ? this.bar.value : 0;
      this.say(name === "refused" ? "not to be seen: reload the page" : name);
      this.button?.remove();
    }
    this.dataset.state = name === "progress" ? "running" : name;
  }
});

customElements.define("revolve-output", class extends Live {
  draw() {
    this.text = make("pre", "output");
    this.text.setAttribute("role", "log");
    this.text.tabIndex = 0;
    this.append(this.text);
  }
  say(text) { this.text.textContent = text; }
  hear(event) {
    const at = this.text;
    const follows = at.scrollHeight - at.scrollTop - at.clientHeight < 8; // who scrolled up is left there
    if (event.event === "retrying") at.replaceChildren(); // a new attempt replaces
    else if (event.event === "gap") this.line(`… ${event.count} events are missing`, "gap");
    else if (event.event === "question") this.ask(event);
    else if (event.event === "item") at.append(String(event.args?.[0] ?? ""));
    else if ("text" in event) this.line(event.text, event.event);
    while (at.childNodes.length > 10000) at.firstChild.remove();
    if (follows) at.scrollTop = at.scrollHeight;
  }
  line(text, kind) {
    const line = make("span");
    line.dataset.kind = kind;
    line.textContent = text.endsWith("\n") ? text : `${text}\n`;
    this.text.append(line);
  }
  ask(event) {
    this.line(event.text, "question");
    if (!this.hasAttribute("act")) return;
    const form = make("form");
    const field = make("input", event.text);
    const button = make("button");
    button.textContent = "Answer";
    form.append(field, button);
    form.onsubmit = async (submit) => {
      submit.preventDefault();
      button.disabled = true;
      if (await this.post("answer", { text: field.value })) form.remove();
      else button.disabled = false;
    };
    this.append(form);
  }
});
