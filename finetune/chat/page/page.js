// Talk to one or two models, side by side, and keep which answer was the better one. All text is set as text, never as
// HTML: an answer may hold anything.
"use strict";

const at = (id) => document.getElementById(id);
const NOBODY = "";
const LONGEST_MARKED = 1500; // words of both answers together, beyond which differences are not marked

let about = null; // what the server says of itself
let token = sessionStorage.getItem("token"); // gone with the tab
let turns = []; // {question, answers: [{model, text, …}], going: index of the answer that goes on, verdict}
let running = null; // the AbortController of the answers being written

function make(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function notice(text) {
  at("notice").hidden = !text;
  at("notice").textContent = text || "";
}

// ---- the server

async function call(address, body, signal) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  if (body) headers["Content-Type"] = "application/json";
  const found = await fetch(address, {
    method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal,
  });
  if (found.ok) return found;
  let message = `${found.status} ${found.statusText}`;
  try { message = (await found.json()).error.message; } catch { /* not ours: a proxy's page */ }
  throw Object.assign(new Error(message), { status: found.status });
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the answer was cut off: the server stopped");
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

// ---- asking

function history() {
  const system = at("system").value.trim();
  const messages = system && about.chat ? [{ role: "system", content: system }] : [];
  if (!about.chat) return messages; // a template without conversations: every question stands alone
  for (const turn of turns) {
    messages.push({ role: "user", content: turn.question });
    messages.push({ role: "assistant", content: turn.answers[turn.going].text });
  }
  return messages;
}

async function ask(question) {
  const models = [at("left").value, at("right").value].filter((name) => name !== NOBODY);
  const blind = at("blind").checked && models.length === 2;
  if (blind && Math.random() < 0.5) models.reverse();
  const temperature = Number(at("temperature").value);
  const messages = [...history(), { role: "user", content: question }];
  const turn = {
    question, messages, blind, temperature, going: 0, verdict: null,
    answers: models.map((model) => ({ model, text: "", note: "", writing: true, wrong: "" })),
  };
  if (models.length === 2 && models[0] === models[1] && temperature === 0) {
    notice("At temperature 0 both answers are the same: raise it in the settings to compare two samples.");
  } else notice("");
  turns.push(turn);
  show(turn, true);
  running = new AbortController();
  busy(true);
  const same = models.length === 2 && models[0] === models[1];
  await Promise.all(same ? [write(turn, [0, 1])] : models.map((_, index) => write(turn, [index])));
  running = null;
  busy(false);
  if (turn.answers.every((answer) => answer.wrong && !answer.text)) { // nothing was said: the question can be changed
    turns.pop();
    turn.place.remove();
    at("question").value ||= question;
    notice(turn.answers[0].wrong);
  } else show(turn);
}

// Let one request write into the answers `places` of a turn: samples of one model where there are two.
async function write(turn, places) {
  const began = performance.now();
  let first = null;
  try {
    const response = await call("/v1/chat/completions", {
      model: turn.answers[places[0]].model, messages: turn.messages, temperature: turn.temperature,
      max_tokens: Number(at("most").value) || 256, n: places.length, stream: true,
      stream_options: { include_usage: true },
    }, running.signal);
    for await (const event of events(response)) {
      first ??= performance.now() - began;
      for (const choice of event.choices) {
        const answer = turn.answers[places[choice.index]];
        answer.text += choice.delta.content || "";
        if (choice.finish_reason) answer.writing = false;
        if (choice.finish_reason === "length") answer.note = "cut at the longest answer. ";
      }
      if (event.usage) {
        const seconds = (performance.now() - began) / 1000;
        const count = `${event.usage.completion_tokens} tokens${places.length > 1 ? " in both" : ""}`;
        for (const place of places) turn.answers[place].note += `${count}, ${seconds.toFixed(1)} s`;
      }
      show(turn, true);
    }
  } catch (error) {
    for (const place of places) {
      turn.answers[place].wrong = error.name === "AbortError" ? "stopped" : error.message;
    }
    if (error.status === 401) enter("That token is not the one of this server.");
  }
  for (const place of places) turn.answers[place].writing = false;
  show(turn, true);
}

function busy(is) {
  at("send").textContent = is ? "Stop" : "Send";
  at("new").disabled = is;
}

// ---- showing

// What stands in one text and not in the other, as [text, is different] pieces, by the longest common run of words.
function marked(mine, other) {
  const [a, b] = [mine, other].map((text) => text.match(/\s+|[\p{L}\p{N}_']+|[^\s]/gu) || []);
  if (a.length + b.length > LONGEST_MARKED) return [[mine, false]];
  const lengths = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      lengths[i][j] = a[i] === b[j] ? lengths[i + 1][j + 1] + 1 : Math.max(lengths[i + 1][j], lengths[i][j + 1]);
    }
  }
  const pieces = [];
  for (let i = 0, j = 0; i < a.length;) {
    const same = j < b.length && a[i] === b[j];
    if (!same && j < b.length && lengths[i][j + 1] > lengths[i + 1][j]) { j++; continue; }
    const last = pieces[pieces.length - 1];
    if (last && last[1] === !same) last[0] += a[i]; else pieces.push([a[i], !same]);
    i++;
    if (same) j++;
  }
  for (let i = pieces.length - 2; i > 0; i--) { // blanks between words that differ belong to them
    if (!pieces[i][1] && !pieces[i][0].trim()) {
      pieces.splice(i - 1, 3, [pieces[i - 1][0] + pieces[i][0] + pieces[i + 1][0], true]);
      i--;
    }
  }
  return pieces;
}

function fill(said, turn, index) {
  const answer = turn.answers[index];
  const other = turn.answers[1 - index];
  said.replaceChildren();
  const done = turn.answers.every((each) => !each.writing);
  const pieces = other && done && at("marks").checked ? marked(answer.text, other.text) : [[answer.text, false]];
  for (const [text, differs] of pieces) {
    const blank = !text.trim();
    said.append(differs && !blank ? make("mark", "", text) : document.createTextNode(text));
  }
  if (answer.wrong) said.append(make("span", "wrong", `${answer.text ? " " : ""}[${answer.wrong}]`));
  said.classList.toggle("writing", answer.writing);
}

function title(turn, index) {
  const hidden = turn.blind && turn.verdict === null;
  if (turn.answers.length === 1) return turn.answers[0].model;
  const side = index ? "Right" : "Left";
  return hidden ? side : `${side}: ${turn.answers[index].model}`;
}

function show(turn, follow) {
  at("welcome").hidden = turns.length > 0;
  if (!turn.place) {
    turn.place = make("section", "turn");
    at("turns").append(turn.place);
  }
  const end = document.documentElement;
  const atEnd = end.scrollHeight - end.scrollTop - end.clientHeight < 120;
  const sides = make("div", "sides");
  turn.answers.forEach((answer, index) => {
    const box = make("article", "answer");
    if (turn.verdict === ["left", "right"][index]) box.classList.add("better");
    const said = make("div", "said");
    fill(said, turn, index);
    box.append(make("h2", "", title(turn, index)), said, make("p", "quiet note", answer.note));
    sides.append(box);
  });
  turn.place.replaceChildren(make("div", "question", turn.question), sides);
  if (turn.answers.length === 2) turn.place.append(verdicts(turn));
  if (follow && atEnd) end.scrollTop = end.scrollHeight;
}

function verdicts(turn) {
  const bar = make("div", "verdicts");
  const words = { left: "Left is better", tie: "Tie", both_bad: "Both are bad", right: "Right is better" };
  if (turn.verdict !== null) {
    const going = turn.going ? "right" : "left";
    const more = about.chat && turn === turns[turns.length - 1] ? `; the conversation goes on with the ${going} one` : "";
    bar.append(make("p", "quiet", `Kept: ${words[turn.verdict].toLowerCase()}${more}.`));
    return bar;
  }
  const done = turn.answers.every((answer) => !answer.writing && !answer.wrong);
  if (turn !== turns[turns.length - 1] || !done) return bar;
  const squeezed = turn.answers.map((answer) => answer.text.replace(/\s+/g, ""));
  const same = squeezed[0] === squeezed[1];
  const empty = squeezed.includes("");
  for (const [verdict, text] of Object.entries(words)) {
    const button = make("button", "", text);
    button.type = "button";
    button.dataset.verdict = verdict;
    button.disabled = (same || empty) && (verdict === "left" || verdict === "right");
    button.addEventListener("click", () => prefer(turn, verdict, bar));
    bar.append(button);
  }
  if (same) bar.append(make("p", "quiet", "Both say the same: there is nothing to prefer."));
  else if (empty) bar.append(make("p", "quiet", "One answer is empty: stages learn from no such pair."));
  return bar;
}

async function prefer(turn, verdict, bar) {
  for (const button of bar.querySelectorAll("button")) button.disabled = true;
  try {
    const answers = turn.answers.map(({ model, text }) => ({ model, text }));
    const { messages, blind, temperature } = turn;
    const found = await call("/finetune/preferences", { messages, answers, verdict, blind, temperature });
    turn.verdict = verdict;
    turn.going = verdict === "right" ? 1 : 0;
    count((await found.json()).kept);
    notice("");
  } catch (error) {
    notice(`Not kept: ${error.message}`);
    if (error.status === 401) enter("That token is not the one of this server.");
  }
  show(turn, true);
}

function count(kept) {
  const pairs = `${kept.pairs} ${kept.pairs === 1 ? "pair" : "pairs"} in ${about.pairs}`;
  const ties = kept.tie + kept.both_bad;
  at("kept").textContent = ties ? `${pairs}; ${kept.tie} tied and ${kept.both_bad} bad on both sides in ${about.ties}` : pairs;
}

// ---- the page

function enter(text) {
  token = null;
  sessionStorage.removeItem("token");
  notice(text);
  at("door").hidden = false;
  at("token").focus();
}

async function open() {
  try {
    about = await (await call("/finetune/about")).json();
  } catch (error) {
    if (error.status === 401) enter(token ? "That is not the token." : "This server asks for its token.");
    else notice(error.message);
    return;
  }
  if (token) sessionStorage.setItem("token", token);
  notice("");
  at("door").hidden = true;
  for (const id of ["left", "right"]) {
    at(id).replaceChildren(...about.models.map((name) => new Option(name, name)));
  }
  at("right").append(new Option("nobody", NOBODY));
  at("right").value = about.models[1] ?? about.models[0];
  at("most").max = about.most_tokens;
  at("most").value = Math.min(256, about.most_tokens);
  at("system").placeholder = about.system ?? "none";
  at("system-field").hidden = !about.chat;
  const alone = about.chat ? "" : " This template has no conversations: what you write is continued.";
  at("about").textContent = `Template: ${about.template}. ${about.room} tokens at most, question and answer together.${alone}`;
  count(about.kept);
  warmth();
}

function warmth() {
  at("warmth").textContent = Number(at("temperature").value).toFixed(2);
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) return running.abort();
  const question = at("question").value.trim();
  if (!question || !about) return;
  at("question").value = "";
  at("question").style.height = "";
  ask(question);
});
at("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    if (!running) at("ask").requestSubmit();
  }
});
at("question").addEventListener("input", () => {
  at("question").style.height = "";
  at("question").style.height = `${at("question").scrollHeight + 2}px`;
});
at("new").addEventListener("click", () => {
  turns = [];
  at("turns").replaceChildren();
  at("welcome").hidden = false;
  notice("");
  at("question").focus();
});
at("door").addEventListener("submit", (event) => {
  event.preventDefault();
  token = at("token").value.trim();
  at("token").value = "";
  open();
});
at("temperature").addEventListener("input", warmth);
at("marks").addEventListener("change", () => turns.forEach((turn) => show(turn)));
document.addEventListener("click", (event) => {
  if (!at("settings").contains(event.target)) at("settings").open = false;
});
open();
