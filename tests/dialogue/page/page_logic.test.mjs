// The page's modules that need no browser; PAGE is a copy of its folder that node takes as modules.

import assert from "node:assert/strict";
import { test } from "node:test";
import { pathToFileURL } from "node:url";

const load = (name) => import(pathToFileURL(`${process.env.PAGE}/${name}`));
const pcm = await load("pcm.js");
const { Resampler } = await load("resampler.js");
const { JitterBuffer } = await load("player-worklet.js");
const { Conversation, delays, median, TURNS } = await load("conversation.js");
const { explain, worthRetrying } = await load("failures.js");
const { Recording } = await load("recording.js");

const RATE = 24_000;
const ones = (length) => new Float32Array(length).fill(1);

/** Renders so many blocks; returns sound and reports. */
function render(buffer, blocks) {
  const sound = [];
  const reports = [];
  for (let i = 0; i < blocks; i++) {
    const block = new Float32Array(128);
    reports.push(...buffer.render(block));
    sound.push(...block);
  }
  return { sound, reports, types: reports.map(({ type }) => type) };
}

function steepest(sound) {
  return sound.reduce((most, x, i) => Math.max(most, Math.abs(x - (sound[i - 1] ?? 0))), 0);
}

/** A conversation with a real jitter buffer, whose reports it gets. */
function talk() {
  const buffer = new JitterBuffer(RATE);
  const sent = [];
  const failures = [];
  const conversation = new Conversation({
    send: (event) => sent.push(event),
    player: buffer,
    failed: (failure) => failures.push(failure),
  });
  const play = (blocks, now) => {
    for (const report of render(buffer, blocks).reports) conversation.played(report, now);
  };
  const say = (type, fields, now = 0) => conversation.receive({ type, ...fields }, now);
  const sound = (samples, now, id = "a") => {
    const delta = pcm.encodeBase64(pcm.toPcm16(ones(samples).fill(0.5)));
    const place = { response_id: `r${id}`, item_id: id };
    say("response.created", { response: { id: `r${id}` } }, now);
    say("response.output_audio.delta", { ...place, delta }, now);
  };
  conversation.receive({ type: "session.created", session: { audio: {} } }, 0);
  return { conversation, buffer, sent, failures, play, say, sound };
}

test("16-bit samples survive base64 and float", () => {
  const samples = Int16Array.from([0, 1, -1, 32_767, -32_768, 256, -257]);
  const back = pcm.decodeBase64(pcm.encodeBase64(pcm.toPcm16(pcm.fromPcm16(samples))));
  assert.deepEqual(back, samples);
  assert.equal(pcm.encodeBase64(Int16Array.from([1])), "AQA=");
  assert.deepEqual([...pcm.toPcm16([2, -2])], [32_767, -32_768]);
});

test("a WAV file holds both sides, the shorter one filled with silence", () => {
  const view = new DataView(pcm.encodeWav([Int16Array.of(1, 2), Int16Array.of(7)], RATE));
  assert.equal(view.byteLength, 44 + 8);
  assert.equal(view.getUint16(22, true), 2);
  assert.equal(view.getUint32(24, true), RATE);
  const samples = [0, 1, 2, 3].map((i) => view.getInt16(44 + 2 * i, true));
  assert.deepEqual(samples, [1, 7, 2, 0]);
});

for (const from of [48_000, 44_100, 16_000]) {
  test(`sound of ${from} Hz is the same at 24 kHz however it is cut`, () => {
    const tone = (rate, hz, n) =>
      Float32Array.from({ length: n }, (_, i) => Math.sin((2 * Math.PI * hz * i) / rate));
    const input = tone(from, 1000, from / 10);
    const whole = new Resampler(from, RATE).push(input);
    const pieces = new Resampler(from, RATE);
    const joined = [];
    for (let at = 0; at < input.length; at += 77) joined.push(...pieces.push(input.slice(at, at + 77)));
    assert.deepEqual(joined, [...whole]);
    const wanted = tone(RATE, 1000, whole.length);
    assert.ok(Math.abs(whole.length - RATE / 10) < 40);
    for (let i = 100; i < whole.length; i++) assert.ok(Math.abs(whole[i] - wanted[i]) < 0.01);
  });
}

test("what 24 kHz cannot carry does not come back as another tone", () => {
  const input = Float32Array.from({ length: 4800 }, (_, i) => Math.sin((2 * Math.PI * i) / 3));
  const output = new Resampler(48_000, RATE).push(input).slice(100);
  assert.ok(Math.max(...output.map(Math.abs)) < 0.01);
});

test("play begins once 80 ms lie ready, or the answer is whole, without a click", () => {
  const buffer = new JitterBuffer(RATE);
  buffer.push("a", ones(1919));
  assert.deepEqual(render(buffer, 2).types, []);
  buffer.push("a", ones(1));
  const { sound, types } = render(buffer, 2);
  assert.deepEqual(types, ["began"]);
  assert.ok(steepest(sound) < 0.01);
  const short = new JitterBuffer(RATE);
  short.push("b", ones(300));
  short.finish("b");
  const { reports } = render(short, 4);
  assert.deepEqual(reports, [{ type: "began", item: "b" }, { type: "ended", item: "b", played: 300 }]);
});

test("a gap is faded and makes the buffer hold more, up to 200 ms", () => {
  const buffer = new JitterBuffer(RATE);
  for (let gap = 1; gap <= 15; gap++) {
    buffer.push("a", ones(5000));
    const { sound, reports } = render(buffer, 60);
    assert.ok(steepest(sound) < 0.01);
    const target = Math.min(1920 + 240 * gap, 4800);
    assert.deepEqual(reports.at(-1), { type: "underrun", target });
  }
});

test("calm lets the buffer hold less, down to 40 ms", () => {
  const buffer = new JitterBuffer(RATE);
  buffer.push("a", ones(RATE * 11));
  render(buffer, (RATE * 10.5) / 128);
  assert.equal(buffer.target, 1920 - 120);
  buffer.push("a", ones(RATE * 75));
  render(buffer, (RATE * 74) / 128);
  assert.equal(buffer.target, 960);
});

test("clearing fades within 5 ms and tells how many samples were heard", () => {
  const buffer = new JitterBuffer(RATE);
  buffer.push("a", ones(RATE));
  buffer.push("b", ones(RATE));
  const before = render(buffer, 20).sound;
  buffer.clear();
  buffer.push("c", ones(RATE));
  const { sound, reports } = render(buffer, 30);
  assert.ok(steepest([...before, ...sound]) < 0.01);
  const [cleared, next] = reports;
  assert.equal(cleared.type, "cleared");
  const heard = before.length + sound.findIndex((sample) => sample === 0);
  assert.ok(Math.abs(cleared.items[0].played - heard) <= 1);
  assert.deepEqual(cleared.items.map(({ item }) => item), ["a", "b"]);
  assert.equal(cleared.items[1].played, 0);
  assert.deepEqual(next, { type: "began", item: "c" });
});

test("what is held is kept to the sample", () => {
  const buffer = new JitterBuffer(RATE);
  buffer.push("a", ones(RATE));
  buffer.finish("a");
  render(buffer, 20);
  buffer.hold();
  render(buffer, 100);
  assert.deepEqual(render(buffer, 10).sound, new Array(1280).fill(0));
  buffer.resume();
  const { reports } = render(buffer, 200);
  assert.deepEqual(reports, [{ type: "ended", item: "a", played: RATE }]);
});

test("a barge-in truncates the answer to what was heard", () => {
  const { conversation, sent, play, say, sound } = talk();
  say("input_audio_buffer.speech_started", { item_id: "q", audio_start_ms: 0 }, 0);
  say("input_audio_buffer.speech_stopped", { item_id: "q", audio_end_ms: 900 }, 1000);
  sound(24_000, 1100);
  play(40, 1200);
  assert.equal(conversation.phase, "speaking");
  say("input_audio_buffer.speech_started", { item_id: "q2", audio_start_ms: 1300 }, 1400);
  play(1, 1400);
  say("response.done", { response: { id: "ra", status: "cancelled", output: [{ id: "a" }] } }, 1400);
  play(1, 1410);
  const truncate = sent.find(({ type }) => type === "conversation.item.truncate");
  assert.equal(truncate.item_id, "a");
  const played = conversation.turns[0].answer.heard;
  assert.equal(truncate.audio_end_ms, Math.floor(played / 24));
  assert.ok(played > 39 * 128 && played <= 41 * 128);
  assert.equal(conversation.turns[0].answer.status, "interrupted");
  assert.deepEqual(delays(conversation.turns[0]), { wait: 0, chunk: 100, sound: 200 });
});

test("a back-channel lets the answer go on and is no turn", () => {
  const { conversation, sent, play, say, sound } = talk();
  sound(24_000, 0);
  play(40, 100);
  say("input_audio_buffer.speech_started", { item_id: "q", audio_start_ms: 0 }, 300);
  play(40, 400);
  say("x.backchannel", { audio_start_ms: 0, duration_ms: 300 }, 700);
  say("response.output_audio.done", { response_id: "ra", item_id: "a" }, 700);
  say("response.done", { response: { id: "ra", status: "completed", output: [{ id: "a" }] } }, 700);
  play(200, 2000);
  assert.equal(conversation.turns.length, 1);
  assert.equal(conversation.turns[0].answer.heard, 24_000);
  assert.equal(conversation.turns[0].answer.status, "completed");
  assert.deepEqual(conversation.spans.map(({ kind }) => kind), ["speech", "backchannel"]);
  assert.ok(!sent.some(({ type }) => type === "conversation.item.truncate"));
});

test("stopping cancels, and what still arrives of the answer is not played", () => {
  const { conversation, buffer, sent, play, sound } = talk();
  sound(24_000, 0);
  play(40, 100);
  conversation.stop();
  play(1, 200);
  sound(24_000, 300);
  assert.equal(buffer.buffered, 0);
  assert.deepEqual(sent.map(({ type }) => type), ["response.cancel", "conversation.item.truncate"]);
});

test("push to talk sends what is held, and silence for the rest", () => {
  const { conversation, sent } = talk();
  conversation.configure("push");
  assert.equal(sent[0].session.audio.input.turn_detection, null);
  const loud = (now) => conversation.hear(ones(960), now).some((sample) => sample !== 0);
  assert.equal(loud(0), false);
  conversation.push(true, 10);
  assert.equal(loud(40), true);
  conversation.push(false, 500);
  assert.equal(loud(520), true);
  assert.equal(loud(560), false);
  assert.deepEqual(
    sent.map(({ type }) => type.replace("input_audio_buffer.", "")),
    ["session.update", "append", "clear", "append", "append", "commit", "response.create", "append"],
  );
  assert.equal(conversation.phase, "thinking");
});

test("a button that was only touched asks nothing", () => {
  const { conversation, sent } = talk();
  conversation.configure("push");
  conversation.push(true, 0);
  conversation.push(false, 50);
  conversation.hear(ones(960), 60);
  assert.ok(!sent.some(({ type }) => type === "input_audio_buffer.commit"));
  assert.deepEqual([conversation.turns, conversation.spans], [[], []]);
});

test("a model that finds turns itself is not told how", () => {
  const { conversation, sent, say } = talk();
  say("session.created", { session: { audio: { input: { turn_detection: null } } } });
  conversation.configure("push");
  assert.ok(!("turn_detection" in sent.at(-1).session.audio.input));
  assert.equal(conversation.isPush, false);
});

test("harmless refusals are let pass, others are said", () => {
  const { failures, say } = talk();
  say("error", { error: { code: "response_cancel_not_active", message: "none" } });
  say("error", { error: { code: "invalid_value", message: "no such voice" } });
  assert.deepEqual(failures.map((failure) => explain(failure).text), ["no such voice"]);
});

test("every failure is explained, and only accidents are tried again", () => {
  assert.match(explain({ kind: "insecure" }).text, /--self-signed/);
  assert.match(explain({ kind: "microphone", name: "NotAllowedError" }).title, /blocked/);
  assert.ok(explain({ kind: "token" }).asksToken);
  assert.match(explain({ kind: "closed", code: "session_limit_reached" }).title, /places/);
  assert.match(explain({ kind: "closed", code: 1006 }).title, /lost/);
  assert.ok(worthRetrying({ kind: "closed", code: 1006 }));
  assert.ok(!worthRetrying({ kind: "closed", code: 1008 }));
});

test("the recording keeps both sides on one clock when its beginning is dropped", () => {
  const recording = new Recording(20);
  for (let i = 1; i <= 22; i++) {
    recording.input.add(new Float32Array(RATE).fill(i / 100));
    if (i <= 21) recording.output.add(new Float32Array(RATE).fill(i / 100));
  }
  const { input, output } = recording.samples();
  assert.equal(input.length, 20 * RATE);
  assert.equal(output.length, 19 * RATE);
  assert.equal(input[0], output[0]);
});

test("the median is of those there are", () => {
  assert.equal(median([3, null, 1, 2]), 2);
  assert.equal(median([1, 2]), 1.5);
  assert.equal(median([null]), null);
  assert.equal(TURNS.balanced.silence_duration_ms, 500);
});
