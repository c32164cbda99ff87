"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const texts = data.texts, main = document.getElementById("main"), place = "imatrix_lab " + data.pack;
const REPEAT_EVERY = 15, REPEATS_MAX = 10;

function below(n) { // an unbiased random number from 0 to n - 1
  const most = Math.floor(2 ** 32 / n) * n, drawn = new Uint32Array(1);
  do crypto.getRandomValues(drawn); while (drawn[0] >= most);
  return drawn[0] % n;
}

function shuffled(list) {
  const result = list.slice();
  for (let i = result.length - 1; i > 0; i--) {
    const j = below(i + 1);
    [result[i], result[j]] = [result[j], result[i]];
  }
  return result;
}

// One pair a prompt, half of them turned; some come again at the end, the other way round.
function drawn() {
  const byPrompt = new Map();
  for (const pair of data.pairs) byPrompt.set(pair[0], [...(byPrompt.get(pair[0]) || []), pair]);
  const pairs = shuffled([...byPrompt.values()].map((some) => some[below(some.length)]));
  const turned = shuffled(pairs.map((_, i) => i % 2 === 1));
  const shown = pairs.map(([prompt, a, b], i) => ({ prompt, first: turned[i] ? b : a, second: turned[i] ? a : b, repeat: false }));
  const n = Math.min(REPEATS_MAX, Math.floor(shown.length / REPEAT_EVERY));
  const again = shuffled(shown.slice(0, Math.floor(shown.length / 2))).slice(0, n);
  return [...shown, ...again.map((v) => ({ prompt: v.prompt, first: v.second, second: v.first, repeat: true }))];
}

function begun() {
  const bytes = crypto.getRandomValues(new Uint8Array(8));
  const rater = Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");
  return { pack: data.pack, rater, at: -1, shown: drawn() };
}

function read(text) { // null: nothing that this page kept
  try {
    const kept = JSON.parse(text);
    return kept && kept.pack === data.pack && Array.isArray(kept.shown) ? kept : null;
  } catch { return null; }
}

function restored() {
  try { return read(localStorage.getItem(place)); } catch { return null; } // a browser that keeps nothing
}

let state = restored() || begun(), isKept = true, since = performance.now();

function keep() {
  try { localStorage.setItem(place, JSON.stringify(state)); isKept = true; } catch { isKept = false; }
}

function element(name, attributes = {}, ...inside) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value);
  }
  made.append(...inside);
  return made;
}

function button(text, action, attributes = {}) {
  const onclick = (event) => { if (event.detail < 2) action(); }; // a double click is one choice
  return element("button", { type: "button", onclick, ...attributes }, text);
}

function show(title, ...inside) {
  const head = element("h1", { tabindex: "-1" }, title);
  main.replaceChildren(head, ...inside);
  scrollTo(0, 0);
  head.focus({ preventScroll: true });
}

function votes() {
  return {
    kind: "imatrix_lab votes", pack: data.pack, language: data.language, rater: state.rater,
    finished: state.shown.every((v) => "choice" in v),
    votes: state.shown.filter((v) => "choice" in v),
  };
}

function save() {
  const text = JSON.stringify(votes(), null, 1);
  const link = element("a", { download: "votes-" + data.pack + "-" + state.rater + ".json" });
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.click();
  let area = document.getElementById("votes"); // where a browser saves nothing, it can be copied
  if (!area) {
    area = element("textarea", { id: "votes", readonly: "", "aria-label": texts.save });
    main.append(area);
  }
  area.value = text;
  document.getElementById("next")?.removeAttribute("hidden");
}

function nextPerson() {
  state = begun();
  keep();
  draw();
}

function move(step) {
  state.at = Math.max(0, state.at + step);
  keep();
  since = performance.now();
  draw();
}

function choose(choice) {
  const vote = state.shown[state.at];
  if (!vote) return;
  vote.choice = choice;
  vote.seconds = Math.round((performance.now() - since) / 100) / 10;
  move(1);
}

function text(head, body, id) {
  return element("section", { class: "text", "aria-labelledby": id },
    element("h2", { id }, head), element("p", { dir: "auto", lang: data.language }, body));
}

function draw() {
  if (state.at < 0) {
    show(texts.title, ...texts.intro.map((p) => element("p", {}, p)), ...(isKept ? [] : [element("p", {}, texts.unkept)]),
      button(texts.start, () => move(1), { class: "main", id: "start" }));
    return;
  }
  const total = state.shown.length, vote = state.shown[state.at];
  if (!vote) {
    show(texts.done, element("div", { class: "row" },
      button(texts.back, () => { state.at = total; move(-1); }), button(texts.save, save, { class: "main", id: "save" })),
      button(texts.next_person, nextPerson, { id: "next", hidden: "" }));
    return;
  }
  const counted = texts.progress.replace("{n}", state.at + 1).replace("{total}", total);
  const choices = texts.choices.map((words, i) => button(words, () => choose(2 - i), {
    "aria-pressed": vote.choice === 2 - i ? "true" : "false", "data-choice": String(2 - i),
  }));
  const cannot = button(texts.cannot, () => choose(null), {
    "aria-pressed": vote.choice === null ? "true" : "false", "data-choice": "cannot",
  });
  show(counted,
    element("progress", { max: total, value: state.at, "aria-label": counted }),
    text(texts.prompt, data.prompts[vote.prompt], "prompt"),
    element("div", { class: "pair" }, text(texts.answers[0], data.answers[vote.first], "first"),
      text(texts.answers[1], data.answers[vote.second], "second")),
    element("fieldset", {}, element("legend", {}, texts.question), element("div", { class: "choices" }, ...choices)),
    element("div", { class: "row" }, button(texts.back, () => move(-1)), cannot),
    element("div", { class: "row small" }, element("span", {}, isKept ? texts.pause : texts.unkept),
      element("span", { class: "keys" }, texts.keys), button(texts.save, save)));
}

document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || state.at < 0 || event.target.tagName === "TEXTAREA") return;
  if (event.key === "0") choose(null);
  else if ("12345".includes(event.key)) choose(3 - Number(event.key));
});
addEventListener("storage", (event) => { // another tab went on
  const other = event.key === place && read(event.newValue);
  if (other) { state = other; draw(); }
});
keep();
draw();
