// Writes what a conversation is into the page; reads nothing from it.

import { delays, median } from "./conversation.js";

const find = (id) => document.getElementById(id);
const seconds = (ms) => `${(ms / 1000).toFixed(1)} s`;
const milliseconds = (ms) => (ms === null ? "–" : `${Math.round(ms)} ms`);

/** State of the page: what the big words, the hint and the round button say. */
const WORDS = {
  idle: ["Talk with the model", "Ask aloud, and it answers by voice. You may interrupt it."],
  connecting: ["Connecting …", "Your browser may ask for the microphone."],
  waiting: ["Trying again …", "The conversation begins anew once the server is there."],
  listening: ["Listening", "Speak whenever you like."],
  hearing: ["I hear you", "It answers when you pause."],
  thinking: ["One moment", "The answer is on its way."],
  speaking: ["Answering", "Speak to interrupt it."],
  muted: ["Microphone off", "Press the circle, or M, to be heard again."],
};

const PUSH_WORDS = {
  listening: ["Your turn", "Hold the circle, or the space bar, while you speak."],
  hearing: ["I hear you", "Let go when you have finished."],
  speaking: ["Answering", "Hold to speak, which ends the answer."],
};

const LABELS = { idle: "Start talking", connecting: "Connecting", waiting: "Connecting" };

/** Write only what has changed: assistive technology reads every change aloud. */
function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** @param state "idle", "connecting", "waiting", or a phase of the conversation. */
export function showState(state, { muted, push, duplex, model }) {
  const live = !(state in LABELS);
  const shown = live && muted ? "muted" : state;
  const [status, hint] = (push && PUSH_WORDS[shown]) || WORDS[shown];
  document.body.dataset.state = shown;
  document.body.dataset.mode = push ? "push" : "open";
  write(find("status"), status);
  write(find("hint"), hint);
  const label = LABELS[state] ?? (push ? "Hold to talk" : muted ? "Turn on" : "Mute");
  write(find("orb-label"), label);
  find("orb-icon").setAttribute("href", shown === "muted" ? "#muted" : "#microphone");
  find("orb").disabled = state === "connecting" || state === "waiting";
  find("stop").disabled = state !== "speaking" && state !== "thinking";
  find("turns").closest("label").hidden = duplex;
  write(find("model"), model);
}

export function showFailure(said) {
  find("failure").hidden = !said;
  if (!said) return;
  write(find("failure-title"), said.title);
  write(find("failure-text"), said.text);
  find("token-form").hidden = !said.asksToken;
  if (said.asksToken) find("token").focus();
}

/** The list of turns, each written once and then brought up to date. */
export class TurnList {
  constructor() {
    this.rows = new Map();
  }

  show(turns) {
    const list = find("list");
    for (const [turn, row] of this.rows) {
      if (!turns.includes(turn)) {
        row.root.remove();
        this.rows.delete(turn);
      }
    }
    for (const turn of turns) {
      if (!this.rows.has(turn)) {
        this.rows.set(turn, newRow(list));
        list.scrollTop = list.scrollHeight;
      }
      fill(this.rows.get(turn), turn);
    }
    find("empty").hidden = turns.length > 0;
    const all = turns.map(delays);
    write(find("median"), milliseconds(median(all.map(({ sound }) => sound))));
    write(find("median-wait"), milliseconds(median(all.map(({ wait }) => wait))));
  }
}

function newRow(list) {
  const root = document.createElement("li");
  const line = (name) => root.appendChild(Object.assign(document.createElement("p"), { className: name }));
  const row = { root, you: line("you"), model: line("model"), delays: line("delays") };
  list.append(root);
  return row;
}

function fill(row, turn) {
  const { question, answer } = turn;
  row.you.hidden = !question;
  if (question) {
    const length = question.end === null ? "" : `You spoke for ${seconds(question.end - question.start)}`;
    write(row.you, question.text || length || "You speak …");
  }
  row.model.hidden = !answer;
  if (answer) {
    write(row.model, answer.text || spoken(answer));
    row.model.dataset.status = answer.status;
  }
  const { wait, chunk, sound } = delays(turn);
  row.delays.hidden = sound === null;
  if (sound !== null) {
    write(row.delays, `heard after ${milliseconds(sound)}, sent after ${milliseconds(chunk)}`);
    row.delays.title = wait ? `after ${milliseconds(wait)} of silence` : "";
  }
}

function spoken({ status, heard, samples }) {
  if (status === "playing") return "The model speaks …";
  const length = `${seconds(heard / 24)} long`;
  if (status === "interrupted") return `Answer, interrupted after ${seconds(heard / 24)}`;
  return samples ? `Answer, ${length}` : "No answer";
}
