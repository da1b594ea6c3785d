// Changes the rate of live sound: microphones have 44.1 or 48 kHz, the protocol 24. No DOM in here.

/** Zero crossings of the kernel on each side, at the lower of both rates. */
const ZERO_CROSSINGS = 16;
/** Of the lower rate's band, how much is let through. */
const PASS_BAND = 0.94;

/**
 * A stream of sound at another rate, by a windowed sinc: however the sound is cut into pieces,
 * the output is the same. It lags by `half` input samples, under a millisecond.
 */
export class Resampler {
  constructor(from, to) {
    const divisor = greatestCommonDivisor(from, to);
    this.from = from / divisor;
    this.to = to / divisor;
    const band = Math.min(1, to / from) * PASS_BAND;
    this.half = Math.ceil(ZERO_CROSSINGS / Math.min(1, to / from));
    this.kernels = Array.from({ length: this.to }, (_, phase) =>
      kernel(phase / this.to, band, this.half),
    );
    this.waiting = new Float32Array(this.half - 1);
    /** Where the next output sample lies: input samples into `waiting`, and `to`-ths of one. */
    this.whole = 0;
    this.phase = 0;
  }

  /** float32 [n] in, every output sample that is now certain out. */
  push(samples) {
    if (this.from === this.to) return samples;
    const input = new Float32Array(this.waiting.length + samples.length);
    input.set(this.waiting);
    input.set(samples, this.waiting.length);
    const output = [];
    const taps = 2 * this.half;
    while (this.whole + taps <= input.length) {
      const weights = this.kernels[this.phase];
      let sum = 0;
      for (let k = 0; k < taps; k++) sum += weights[k] * input[this.whole + k];
      output.push(sum);
      this.phase += this.from;
      this.whole += Math.floor(this.phase / this.to);
      this.phase %= this.to;
    }
    const done = Math.min(this.whole, input.length);
    this.waiting = input.slice(done);
    this.whole -= done;
    return Float32Array.from(output);
  }
}

/** Weights of the samples around a point that lies `fraction` after the middle one. */
function kernel(fraction, band, half) {
  const weights = Float64Array.from({ length: 2 * half }, (_, k) => {
    const distance = k - (half - 1) - fraction;
    const window = 0.5 + 0.5 * Math.cos((Math.PI * distance) / half);
    return band * sinc(band * distance) * (Math.abs(distance) < half ? window : 0);
  });
  // A constant stays what it is.
  const sum = weights.reduce((total, weight) => total + weight, 0);
  return weights.map((weight) => weight / sum);
}

function sinc(x) {
  return x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
}

function greatestCommonDivisor(a, b) {
  return b ? greatestCommonDivisor(b, a % b) : a;
}
