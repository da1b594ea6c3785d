// Pictures of a conversation on canvases: spectrograms of both sides, and who spoke when.

const LOWEST_HZ = 90;
const HIGHEST_HZ = 8000;

/** Seconds that a canvas shows: 27 on a wide screen, 12 on a phone's. */
function secondsOf(canvas) {
  return canvas.clientWidth / 32;
}

/** Fits a canvas' pixels to its box; true where they changed. */
function fit(canvas) {
  const scale = Math.min(2, window.devicePixelRatio || 1);
  const width = Math.round(canvas.clientWidth * scale);
  const height = Math.round(canvas.clientHeight * scale);
  if (canvas.width === width && canvas.height === height) return false;
  Object.assign(canvas, { width, height });
  return true;
}

/** The colour of an element, as the theme has it: [red, green, blue]. */
function inkOf(element) {
  return getComputedStyle(element).color.match(/[\d.]+/g).slice(0, 3).map(Number);
}

/**
 * The latest seconds of a sound, frequency upwards on a log scale. It scrolls; with `sweep` it
 * stands still, and new columns are written over the oldest.
 */
export class Spectrogram {
  constructor(canvas) {
    this.canvas = canvas;
    this.ring = document.createElement("canvas");
    this.column = null;
  }

  draw(now, analyser, sweep) {
    const { canvas, ring } = this;
    if (fit(canvas) || ring.width !== canvas.width) {
      Object.assign(ring, { width: canvas.width, height: canvas.height });
      this.column = null;
    }
    const { width, height } = canvas;
    if (!width || !height) return;
    const column = Math.floor(((now / 1000) * width) / secondsOf(canvas));
    const since = Math.min(width, column - (this.column ?? column - 1));
    this.column = column;
    const context = ring.getContext("2d");
    const image = this.paint(context, analyser, height);
    for (let at = column - since + 1; at <= column; at++) context.putImageData(image, at % width, 0);
    const visible = canvas.getContext("2d");
    visible.clearRect(0, 0, width, height);
    const shift = sweep ? 0 : (column + 1) % width;
    visible.drawImage(ring, -shift, 0);
    if (shift) visible.drawImage(ring, width - shift, 0);
    if (sweep) visible.clearRect(((column % width) + 1) % width, 0, 6, height);
  }

  paint(context, analyser, height) {
    const image = context.createImageData(1, height);
    if (!analyser) return image;
    const bins = new Uint8Array(analyser.frequencyBinCount);
    analyser.getByteFrequencyData(bins);
    const [red, green, blue] = inkOf(this.canvas);
    const hz = analyser.context.sampleRate / analyser.fftSize;
    for (let y = 0; y < height; y++) {
      const frequency = LOWEST_HZ * (HIGHEST_HZ / LOWEST_HZ) ** (1 - y / (height - 1));
      const bin = Math.min(frequency / hz, bins.length - 2);
      const below = Math.floor(bin);
      const loud = bins[below] + (bins[below + 1] - bins[below]) * (bin - below);
      image.data.set([red, green, blue, 255 * (loud / 255) ** 1.6], 4 * y);
    }
    return image;
  }
}

/** Bars of who spoke when, the user above the model, on the spectrograms' axis. */
export class Timeline {
  constructor(canvas) {
    this.canvas = canvas;
  }

  /**
   * @param spans Of Conversation.
   * @param sides Elements whose colours the sides have: {you, model}.
   */
  draw(now, spans, sides) {
    fit(this.canvas);
    const { width, height } = this.canvas;
    if (!width || !height) return;
    const scale = width / this.canvas.clientWidth;
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    const seconds = secondsOf(this.canvas);
    const x = (time) => width * (1 - (now - time) / (seconds * 1000));
    const lane = 12 * scale;
    const middle = (height - 16 * scale) / 2;
    const muted = `rgb(${inkOf(this.canvas).join(" ")} / `;
    context.font = `${11 * scale}px system-ui, sans-serif`;
    context.textAlign = "center";
    for (let back = 0; back < seconds; back += 5) {
      const at = x(now - back * 1000);
      context.fillStyle = `${muted}0.14)`;
      context.fillRect(at - scale, 0, scale, height - 16 * scale);
      context.fillStyle = `${muted}0.9)`;
      if (back) context.fillText(`${back} s`, at, height - 2 * scale);
    }
    context.fillStyle = `${muted}0.2)`;
    context.fillRect(0, middle - scale / 2, width, scale);
    for (const { side, start, end, kind } of spans) {
      const left = x(start);
      const length = Math.max(3 * scale, x(end ?? now) - left);
      if (left + length < 0) continue;
      const [red, green, blue] = inkOf(sides[side]);
      context.globalAlpha = kind === "backchannel" ? 0.45 : 1;
      context.fillStyle = `rgb(${red} ${green} ${blue})`;
      const top = side === "you" ? middle - lane - 3 * scale : middle + 3 * scale;
      context.beginPath();
      context.roundRect(left, top, length, lane, 4 * scale);
      context.fill();
      context.globalAlpha = 1;
      if (kind === "interrupted") {
        context.fillRect(left + length + 2 * scale, top - 2 * scale, 2 * scale, lane + 4 * scale);
      }
    }
  }
}
