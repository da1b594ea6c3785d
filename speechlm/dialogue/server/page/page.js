// The page: ties buttons, keys, microphone, player, connection and pictures together.

import { devices, level, Microphone, Player } from "./audio.js";
import { ask, Connection } from "./connection.js";
import { Conversation } from "./conversation.js";
import { Spectrogram, Timeline } from "./drawing.js";
import { explain, worthRetrying } from "./failures.js";
import { Recording } from "./recording.js";
import { showFailure, showState, TurnList } from "./view.js";

const RETRY_S = [1, 2, 4, 8];
const PROCESSING = ["echoCancellation", "noiseSuppression", "autoGainControl"];

const find = (id) => document.getElementById(id);
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const pictures = {
  you: new Spectrogram(find("you-sound")),
  model: new Spectrogram(find("model-sound")),
  timeline: new Timeline(find("timeline")),
};
const list = new TurnList();

/** "idle", "connecting", "waiting" or "live"; while live, the conversation has a phase. */
let state = "idle";
let model = "";
let token = "";
let muted = false;
let microphone = null;
let player = null;
let connection = null;
let conversation = null;
let recording = new Recording();
let retries = 0;

function isPush() {
  return find("turns").value === "push" && !conversation?.duplex;
}

function refresh() {
  const duplex = state === "live" && conversation.duplex;
  const shown = state === "live" ? conversation.phase : state;
  showState(shown, { muted, push: isPush(), duplex, model });
  if (conversation) list.show(conversation.turns);
  find("download").disabled = recording.seconds === 0;
}

function fail(failure) {
  const said = explain(failure);
  if (said.fatal) end();
  showFailure(said);
  refresh();
}

// --- a conversation's life -----------------------------------------------------------------------

async function start() {
  if (state !== "idle") return;
  state = "connecting";
  showFailure(null);
  recording = new Recording();
  refresh();
  try {
    player ??= await Player.open(reported, (samples) => {
      if (state === "live") recording.output.add(samples);
    });
    await openMicrophone();
  } catch (failure) {
    if (failure.kind) fail(failure);
    else fail({ kind: "insecure" });
    return;
  }
  if (state !== "connecting") return;
  await listDevices();
  await connect();
}

async function openMicrophone() {
  const processing = Object.fromEntries(PROCESSING.map((name) => [name, find(name).checked]));
  const choices = { deviceId: find("microphones").value, ...processing };
  const opened = await Microphone.open(choices, (samples) => {
    if (state !== "live") return;
    recording.input.add(conversation.hear(samples, performance.now()));
    refresh();
  });
  microphone?.close();
  microphone = opened;
  microphone.muted = muted;
}

async function connect() {
  const asked = await ask(token);
  if (state === "idle") return;
  if (asked.failure) {
    lost(asked.failure);
    return;
  }
  model = asked.model;
  const opened = new Connection({
    model,
    token,
    received: (event) => {
      conversation.receive(event, performance.now());
      if (event.type === "session.created") begin();
      refresh();
    },
    closed: lost,
  });
  connection = opened;
  conversation = new Conversation({
    send: (event) => opened.send(event),
    player,
    failed: (failure) => showFailure(explain(failure)),
  });
}

function begin() {
  state = "live";
  retries = 0;
  showFailure(null);
  conversation.configure(find("turns").value, performance.now());
}

function lost(failure) {
  const again = recording.seconds > 0 && worthRetrying(failure) && retries < RETRY_S.length;
  if (!again) {
    fail(failure);
    return;
  }
  player.clear();
  state = "waiting";
  showFailure(null);
  setTimeout(() => state === "waiting" && connect(), RETRY_S[retries++] * 1000);
  refresh();
}

function end() {
  state = "idle";
  retries = 0;
  connection?.close();
  microphone?.close();
  player?.clear();
  connection = null;
  microphone = null;
  refresh();
}

function reported(report, heardAt) {
  conversation?.played(report, heardAt);
  refresh();
}

// --- buttons and keys ----------------------------------------------------------------------------

function press(down) {
  if (state === "live") conversation.push(down, performance.now());
  refresh();
}

function mute() {
  if (state !== "live") return;
  muted = !muted;
  microphone.muted = muted;
  refresh();
}

function stop() {
  if (state === "live") conversation.stop();
  refresh();
}

find("orb").addEventListener("click", () => {
  if (state === "idle") start();
  else if (!isPush()) mute();
});
find("orb").addEventListener("pointerdown", (event) => {
  if (state !== "live" || !isPush()) return;
  event.target.setPointerCapture(event.pointerId);
  press(true);
});
for (const name of ["pointerup", "pointercancel"]) {
  find("orb").addEventListener(name, () => press(false));
}
find("orb").addEventListener("contextmenu", (event) => event.preventDefault());
find("stop").addEventListener("click", stop);
find("end").addEventListener("click", end);
find("failure-close").addEventListener("click", () => showFailure(null));
find("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = find("token").value.trim();
  start();
});

document.addEventListener("keydown", (event) => {
  if (find("settings").open || event.ctrlKey || event.metaKey || event.altKey) return;
  const other = event.target.closest("button, select, input, a, summary");
  if (event.key === "Escape") stop();
  else if (event.key.toLowerCase() === "m" && other?.tagName !== "INPUT") mute();
  else if (event.key === " " && (!other || other === find("orb"))) {
    event.preventDefault();
    if (event.repeat) return;
    if (state === "idle") start();
    else if (isPush()) press(true);
    else if (other) mute();
  }
});
document.addEventListener("keyup", (event) => {
  if (event.key !== " ") return;
  if (event.target === find("orb")) event.preventDefault();
  press(false);
});
window.addEventListener("blur", () => press(false));

find("turns").addEventListener("change", () => {
  remember("turns", find("turns").value);
  if (state === "live") conversation.configure(find("turns").value, performance.now());
  refresh();
});

// --- settings ------------------------------------------------------------------------------------

function remember(name, value) {
  localStorage.setItem(`speechlm.${name}`, value);
}

function options(select, found, word) {
  const chosen = select.value;
  const all = [{ deviceId: "", label: `The system's ${word}` }, ...found];
  select.replaceChildren(...all.map(({ deviceId, label }) => new Option(label, deviceId)));
  select.value = all.some(({ deviceId }) => deviceId === chosen) ? chosen : "";
}

async function listDevices() {
  const { inputs, outputs } = await devices();
  options(find("microphones"), inputs, "microphone");
  options(find("speakers"), outputs, "loudspeaker");
  find("speaker-field").hidden = outputs.length === 0;
}

find("open-settings").addEventListener("click", async () => {
  await listDevices();
  find("settings").showModal();
});
find("close-settings").addEventListener("click", () => find("settings").close());
find("settings").addEventListener("click", (event) => {
  if (event.target === find("settings")) find("settings").close();
});
for (const name of ["microphones", ...PROCESSING]) {
  find(name).addEventListener("change", () => microphone && openMicrophone().catch(fail));
}
find("speakers").addEventListener("change", () => player?.choose(find("speakers").value));
navigator.mediaDevices?.addEventListener("devicechange", listDevices);

find("theme").addEventListener("click", () => {
  const dark = getComputedStyle(document.documentElement).getPropertyValue("--dark").trim() === "1";
  document.documentElement.dataset.theme = dark ? "light" : "dark";
  remember("theme", document.documentElement.dataset.theme);
});

find("download").addEventListener("click", () => {
  const url = URL.createObjectURL(new Blob([recording.wav()], { type: "audio/wav" }));
  const link = Object.assign(document.createElement("a"), { href: url, download: "conversation.wav" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
});

// --- pictures ------------------------------------------------------------------------------------

/** Between two pictures, ms: more often is not smoother, and takes from the sound. */
const LEAST_FRAME_MS = 30;
let drawn = 0;

function draw(now) {
  requestAnimationFrame(draw);
  if (now - drawn < LEAST_FRAME_MS) return;
  drawn = now;
  const hears = microphone?.analyser;
  const says = player?.analyser;
  if (state !== "idle" || pictures.you.column === null) {
    pictures.you.draw(now, hears, calm.matches);
    pictures.model.draw(now, says, calm.matches);
    pictures.timeline.draw(now, conversation?.spans ?? [], {
      you: find("you"),
      model: find("answerer"),
    });
    const loud = conversation?.phase === "speaking" ? says : hears;
    const size = loud && !calm.matches ? level(loud) : 0;
    find("orb").style.setProperty("--level", size.toFixed(3));
  }
}

document.documentElement.dataset.theme = localStorage.getItem("speechlm.theme") ?? "system";
if (localStorage.getItem("speechlm.turns")) find("turns").value = localStorage.getItem("speechlm.turns");
refresh();
requestAnimationFrame(draw);
ask("").then((asked) => {
  model = asked.model ?? "";
  refresh();
});

/** For whoever drives the page from outside: both sides so far, and what is known of the turns. */
window.speechlm = {
  recording: () => recording.samples(),
  turns: () => conversation?.turns ?? [],
  state: () => (state === "live" ? conversation.phase : state),
};
