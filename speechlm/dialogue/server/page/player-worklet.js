// Runs in the audio thread: plays answers as they arrive, and knows to the sample what was heard.
// JitterBuffer has no browser in it. It stands in this file because not every browser lets a
// worklet import another.

const FADE_S = 0.005;
const START_S = 0.08;
const LEAST_S = 0.04;
const MOST_S = 0.2;
const GROW_S = 0.01;
const SHRINK_S = 0.005;
/** Played without a gap, after which less is held back. */
const CALM_S = 10;
/** Length of the pieces in which what was played is handed back. */
const BLOCK_S = 0.04;

/**
 * What is to be played. Sound begins once `target` samples lie ready (or the answer is whole);
 * a gap makes the target grow, calm lets it shrink. All beginnings and ends are faded.
 *
 * render() returns reports:
 *   {type: "began", item}                          its first sample was played
 *   {type: "ended", item, played}                  all of it was played
 *   {type: "underrun", target}                     sound ran out in the middle of an answer
 *   {type: "cleared", items: [{item, played}, …]}  after clear(): how many samples were heard
 */
export class JitterBuffer {
  constructor(rate) {
    this.rate = rate;
    this.fade = Math.round(FADE_S * rate);
    this.target = Math.round(START_S * rate);
    this.queue = [];
    this.buffered = 0;
    this.items = new Map();
    this.last = null;
    this.playing = false;
    this.held = false;
    this.clearing = null;
    this.gain = 0;
    this.calm = 0;
  }

  /** More sound of an answer, float32 [n]. */
  push(item, samples) {
    this.begin(item);
    if (!samples.length) return;
    this.queue.push({ item, samples, at: 0 });
    this.buffered += samples.length;
  }

  /** No more sound of this answer will come. */
  finish(item) {
    this.begin(item).finished = true;
  }

  /** Fall silent and keep what is left. */
  hold() {
    this.held = true;
  }

  resume() {
    this.held = false;
  }

  /** Fall silent and forget what is left; answered by a report. What comes later is played. */
  clear() {
    this.clearing = new Set(this.items.keys());
  }

  begin(item) {
    if (!this.items.has(item)) {
      this.items.set(item, { played: 0, finished: false });
      this.last = item;
    }
    return this.items.get(item);
  }

  /** Fill float32 [n] with what is played now; returns what there is to report. */
  render(output) {
    const reports = [];
    for (let i = 0; i < output.length; i++) output[i] = this.next(reports);
    if (this.clearing && this.gain === 0) reports.push(this.cleared());
    for (const [item, { played, finished }] of this.items) {
      const cleared = this.clearing?.has(item);
      if (finished && !cleared && !this.queue.some((piece) => piece.item === item)) {
        reports.push({ type: "ended", item, played });
        this.items.delete(item);
      }
    }
    return reports;
  }

  cleared() {
    const items = [...this.clearing].map((item) => ({ item, played: this.items.get(item).played }));
    for (const { item } of items) this.items.delete(item);
    this.queue = this.queue.filter(({ item }) => this.items.has(item));
    this.buffered = this.queue.reduce((sum, { samples, at }) => sum + samples.length - at, 0);
    this.playing = false;
    this.held = false;
    this.clearing = null;
    return { type: "cleared", items };
  }

  next(reports) {
    const whole = this.items.get(this.last)?.finished ?? true;
    if (!this.playing && this.buffered > 0 && (whole || this.buffered >= this.target)) {
      this.playing = true;
    }
    const silenced = this.held || this.clearing;
    const open = this.playing && !silenced && this.buffered > this.fade;
    this.gain = open
      ? Math.min(1, this.gain + 1 / this.fade)
      : Math.max(0, this.gain - 1 / this.fade);
    if (this.gain < 1e-6) this.gain = 0;
    const draining = whole && this.playing && !silenced;
    if (this.buffered && (this.gain > 0 || draining)) return this.gain * this.take(reports);
    this.gain = 0;
    if (this.playing && !silenced) {
      this.playing = false;
      if (!whole) {
        this.calm = 0;
        this.target = Math.min(this.target + GROW_S * this.rate, MOST_S * this.rate);
        reports.push({ type: "underrun", target: this.target });
      }
    }
    return 0;
  }

  take(reports) {
    const piece = this.queue[0];
    const sample = piece.samples[piece.at++];
    const state = this.items.get(piece.item);
    if (state.played++ === 0) reports.push({ type: "began", item: piece.item });
    this.buffered--;
    if (piece.at === piece.samples.length) this.queue.shift();
    if (++this.calm >= CALM_S * this.rate) {
      this.calm = 0;
      this.target = Math.max(this.target - SHRINK_S * this.rate, LEAST_S * this.rate);
    }
    return sample;
  }
}

function register() {
  class PlayerProcessor extends AudioWorkletProcessor {
    constructor() {
      super();
      this.buffer = new JitterBuffer(sampleRate);
      this.block = new Float32Array(Math.round(BLOCK_S * sampleRate));
      this.filled = 0;
      this.port.onmessage = ({ data: { call, item, samples } }) => this.buffer[call](item, samples);
    }

    process(_, [[output]]) {
      for (const report of this.buffer.render(output)) {
        this.port.postMessage({ ...report, time: currentTime });
      }
      for (const sample of output) {
        this.block[this.filled++] = sample;
        if (this.filled === this.block.length) {
          const full = this.block;
          this.block = new Float32Array(full.length);
          this.port.postMessage({ type: "played", samples: full }, [full.buffer]);
          this.filled = 0;
        }
      }
      return true;
    }
  }
  registerProcessor("player", PlayerProcessor);
}

if ("registerProcessor" in globalThis) register();
