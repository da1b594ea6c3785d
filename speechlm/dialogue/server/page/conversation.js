// What was said by whom and when: the server's events and the player's reports in, the client's
// events and orders to the player out. No DOM and no clock in here: all times are given, ms.

import { decodeBase64, encodeBase64, fromPcm16, playedMs, SAMPLE_RATE, toPcm16 } from "./pcm.js";

const voiceActivity = (silence_duration_ms, threshold = 0.5) => ({
  type: "server_vad",
  threshold,
  prefix_padding_ms: 300,
  silence_duration_ms,
});

/** When it is the model's turn, by name; null: whenever the user says so. */
export const TURNS = {
  balanced: voiceActivity(500),
  quick: voiceActivity(250),
  patient: voiceActivity(1000),
  noisy: voiceActivity(500, 0.8),
  semantic: { type: "semantic_vad", eagerness: "auto" },
  push: null,
};

/** Held for less, the button was only touched. */
const LEAST_PRESS_MS = 150;

/** Refusals that only say that something had already happened. */
const HARMLESS = new Set([
  "response_cancel_not_active",
  "input_audio_buffer_commit_empty",
  "conversation_already_has_active_response",
]);

/**
 * One conversation.
 *
 * phase: "listening", "hearing" (the user speaks), "thinking" or "speaking".
 * turns: {question, answer} in order; spans: who spoke when, {side, start, end, kind}, where kind
 *   is "speech", "interrupted" or "backchannel", and end is null while it lasts.
 */
export class Conversation {
  constructor({ send, player, failed }) {
    this.send = send;
    this.player = player;
    this.failed = failed;
    /** The model listens while it speaks, and knows itself when to. */
    this.duplex = false;
    this.phase = "listening";
    this.turns = [];
    this.spans = [];
    this.detection = "balanced";
    this.response = null;
    this.discarded = new Set();
    this.answers = new Map();
    this.holding = false;
    this.press = null;
    this.releasing = false;
    this.origin = null;
  }

  /** Choose how turns are found. */
  configure(detection, now) {
    this.detection = detection;
    if (this.phase === "hearing" && this.press === null) {
      // Nobody will say any more that this speech has ended.
      this.endQuestion(now, null, null);
      this.phase = "listening";
    }
    const input = { format: { type: "audio/pcm", rate: SAMPLE_RATE } };
    if (!this.duplex) input.turn_detection = TURNS[detection];
    const output = { format: { type: "audio/pcm", rate: SAMPLE_RATE } };
    const session = { type: "realtime", x_ext: true, audio: { input, output } };
    this.send({ type: "session.update", session });
  }

  get isPush() {
    return this.detection === "push" && !this.duplex;
  }

  /** The microphone's next sound, float32 [n] at 24 kHz; returns what was sent of it. */
  hear(samples, now) {
    this.origin ??= now - playedMs(samples.length);
    // The session's clock is what it hears, so silence is sent, too.
    const silent = this.isPush && this.press === null;
    const sent = silent ? new Float32Array(samples.length) : samples;
    this.send({ type: "input_audio_buffer.append", audio: encodeBase64(toPcm16(sent)) });
    if (this.releasing) this.endPress(now);
    return sent;
  }

  /** The user presses the button to talk, or lets go. */
  push(down, now) {
    if (!this.isPush) return;
    if (down && this.press === null) {
      this.stop();
      this.send({ type: "input_audio_buffer.clear" });
      this.press = now;
      this.startQuestion(null, now);
    } else if (!down && this.press !== null) {
      // What was said just before the button was let go is still in the microphone's block.
      this.releasing = true;
    }
  }

  endPress(now) {
    const held = now - this.press;
    this.releasing = false;
    this.press = null;
    if (held < LEAST_PRESS_MS) {
      this.turns.pop();
      this.spans.splice(this.spans.findLastIndex((span) => span.side === "you"), 1);
      this.phase = "listening";
      return;
    }
    this.endQuestion(now, 0, now);
    this.send({ type: "input_audio_buffer.commit" });
    this.send({ type: "response.create" });
  }

  /** Let the answer end here. */
  stop() {
    if (this.response) {
      this.discarded.add(this.response);
      this.send({ type: "response.cancel", response_id: this.response });
      if (this.phase === "thinking") this.phase = "listening";
    }
    this.silence();
  }

  silence() {
    this.holding = false;
    if (this.answers.size) this.player.clear();
  }

  /** An event of the server. */
  receive(event, now) {
    const handle = this[event.type];
    if (handle) handle.call(this, event, now);
  }

  ["session.created"]({ session }) {
    this.duplex = session.audio?.input?.turn_detection === null;
  }

  ["input_audio_buffer.speech_started"](event, now) {
    this.startQuestion(event.item_id, this.pageTime(event.audio_start_ms, now));
    if (this.answers.size) {
      // A back-channel does not end the answer: so it only waits until that is known.
      this.holding = true;
      this.player.hold();
    }
  }

  ["input_audio_buffer.speech_stopped"](event, now) {
    const end = this.pageTime(event.audio_end_ms, now);
    this.endQuestion(end, Math.max(0, now - end), now);
  }

  ["input_audio_buffer.committed"]({ item_id }) {
    const question = this.turns.at(-1)?.question;
    if (question) question.item ??= item_id;
    if (this.holding) this.silence();
  }

  ["x.backchannel"](event, now) {
    const question = this.turns.at(-1);
    if (question?.answer === null) this.turns.pop();
    const span = this.spans.findLast(({ side }) => side === "you");
    if (span) Object.assign(span, { kind: "backchannel", end: span.end ?? now });
    this.resume();
  }

  ["response.created"]({ response }) {
    this.response = response.id;
    if (this.phase === "listening") this.phase = "thinking";
  }

  ["response.output_item.added"]({ response_id, item }, now) {
    if (!this.discarded.has(response_id)) this.startAnswer(item.id, now);
  }

  ["response.output_audio.delta"]({ response_id, item_id, delta }, now) {
    if (this.discarded.has(response_id)) return;
    const answer = this.startAnswer(item_id, now);
    const samples = fromPcm16(decodeBase64(delta));
    answer.firstDelta ??= now;
    answer.samples += samples.length;
    this.player.push(item_id, samples);
  }

  ["response.output_audio.done"]({ item_id }) {
    if (this.answers.has(item_id)) this.player.finish(item_id);
  }

  ["response.output_audio_transcript.delta"]({ response_id, item_id, delta }, now) {
    if (!this.discarded.has(response_id)) this.startAnswer(item_id, now).text += delta;
  }

  ["response.output_text.delta"](event, now) {
    this["response.output_audio_transcript.delta"](event, now);
  }

  ["conversation.item.input_audio_transcription.delta"]({ item_id, delta }) {
    const turn = this.turns.findLast(({ question }) => question?.item === item_id);
    if (turn) turn.question.text += delta;
  }

  ["conversation.item.input_audio_transcription.completed"]({ item_id, transcript }) {
    const turn = this.turns.findLast(({ question }) => question?.item === item_id);
    if (turn) turn.question.text = transcript;
  }

  ["response.done"]({ response }) {
    if (this.response === response.id) this.response = null;
    const discarded = this.discarded.delete(response.id);
    if (response.status === "cancelled" && !discarded) this.silence();
    if (response.status === "failed") {
      this.failed({ kind: "answer", message: response.status_details?.error?.message });
    }
    // An answer without sound has no report of the player to end it.
    for (const { id } of response.output ?? []) {
      if (this.answers.has(id)) this.player.finish(id);
    }
    const over = !this.answers.size && this.phase === "thinking";
    if (over && !discarded) this.phase = "listening";
  }

  ["error"]({ error }) {
    if (!HARMLESS.has(error.code)) this.failed({ kind: "server", ...error });
    if (this.phase === "thinking" && !this.answers.size) this.phase = "listening";
  }

  /** A report of the player, see JitterBuffer; `now` is when it can be heard. */
  played(report, now) {
    if (report.type === "began") {
      const answer = this.answers.get(report.item);
      if (!answer) return;
      answer.start = now;
      answer.span = { side: "model", start: now, end: null, kind: "speech" };
      this.spans.push(answer.span);
      if (this.phase !== "hearing") this.phase = "speaking";
    } else if (report.type === "ended") {
      this.endAnswer(report.item, report.played, "completed", now);
    } else if (report.type === "cleared") {
      for (const { item, played } of report.items) {
        this.endAnswer(item, played, "interrupted", now);
        this.send({
          type: "conversation.item.truncate",
          item_id: item,
          content_index: 0,
          audio_end_ms: playedMs(played),
        });
      }
    }
  }

  resume() {
    this.holding = false;
    this.player.resume();
    this.phase = this.answers.size ? "speaking" : "listening";
  }

  startQuestion(item, start) {
    const question = { item, start, end: null, wait: null, stopped: null, text: "" };
    this.turns.push({ question, answer: null });
    this.spans.push({ side: "you", start, end: null, kind: "speech" });
    this.phase = "hearing";
  }

  endQuestion(end, wait, now) {
    const question = this.turns.at(-1)?.question;
    if (question) Object.assign(question, { end, wait, stopped: now });
    const span = this.spans.findLast(({ side }) => side === "you");
    if (span) span.end ??= end;
    this.phase = "thinking";
  }

  startAnswer(item, now) {
    if (this.answers.has(item)) return this.answers.get(item);
    const answer = { item, added: now, samples: 0, heard: 0, text: "", status: "playing" };
    Object.assign(answer, { firstDelta: null, start: null, end: null, span: null });
    this.answers.set(item, answer);
    const turn = this.turns.at(-1);
    if (turn && turn.answer === null) turn.answer = answer;
    else this.turns.push({ question: null, answer });
    return answer;
  }

  endAnswer(item, played, status, now) {
    const answer = this.answers.get(item);
    if (!answer) return;
    this.answers.delete(item);
    Object.assign(answer, { status, end: now, heard: played });
    if (answer.span) Object.assign(answer.span, { end: now });
    if (answer.span && status === "interrupted") answer.span.kind = "interrupted";
    if (this.phase === "speaking" && !this.answers.size) this.phase = "listening";
  }

  /** A time of the session's input as the page's clock has it. */
  pageTime(audioMs, now) {
    return this.origin === null ? now : Math.min(now, this.origin + audioMs);
  }
}

/**
 * Delays of a turn, ms, null where there are none: `wait` from the end of speech until the server
 * took it for one, `chunk` from then to the first sound's arrival, `sound` until it was played.
 */
export function delays({ question, answer }) {
  const since = (time) => (time === null || time === undefined ? null : time - question.stopped);
  if (!question?.stopped || !answer) return { wait: null, chunk: null, sound: null };
  return { wait: question.wait, chunk: since(answer.firstDelta), sound: since(answer.start) };
}

/** The middle value; null of none. */
export function median(values) {
  const sorted = values.filter((value) => value !== null).sort((a, b) => a - b);
  if (!sorted.length) return null;
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}
