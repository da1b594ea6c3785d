// Both sides of a conversation on one clock, for a download. No DOM in here.

import { encodeWav, fromPcm16, SAMPLE_RATE, toPcm16 } from "./pcm.js";

/** Kept at most, the latest of it: 115 MB. */
const LONGEST_S = 20 * 60;

class Side {
  constructor(longest) {
    this.longest = longest * SAMPLE_RATE;
    this.pieces = [];
    this.length = 0;
    this.dropped = 0;
  }

  add(samples) {
    this.pieces.push(toPcm16(samples));
    this.length += samples.length;
    while (this.length - this.dropped > this.longest) {
      this.dropped += this.pieces.shift().length;
    }
  }

  /** Samples from that of the session's clock on. */
  from(start) {
    const whole = new Int16Array(Math.max(0, this.length - start));
    let at = this.dropped - start;
    for (const piece of this.pieces) {
      const cut = Math.max(0, -at);
      if (cut < piece.length) whole.set(piece.subarray(cut), Math.max(0, at));
      at += piece.length;
    }
    return whole;
  }
}

/** What the server heard (`input`) and what was played (`output`), sample by sample. */
export class Recording {
  constructor(longest = LONGEST_S) {
    this.input = new Side(longest);
    this.output = new Side(longest);
  }

  get seconds() {
    return Math.max(this.input.length, this.output.length) / SAMPLE_RATE;
  }

  sides() {
    const start = Math.max(this.input.dropped, this.output.dropped);
    return [this.input.from(start), this.output.from(start)];
  }

  /** {sampleRate, input, output}: float32 [n] each. */
  samples() {
    const [input, output] = this.sides().map(fromPcm16);
    return { sampleRate: SAMPLE_RATE, input, output };
  }

  /** The user left, the model right. */
  wav() {
    return encodeWav(this.sides(), SAMPLE_RATE);
  }
}
