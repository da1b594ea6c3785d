// Microphone and loudspeaker of the browser, with the worklets that serve them.

import { SAMPLE_RATE } from "./pcm.js";
import { Resampler } from "./resampler.js";

/** Length of a block that is sent, s. */
const BLOCK_S = 0.04;

function listenTo(context, source, fftSize) {
  const analyser = new AnalyserNode(context, {
    fftSize,
    smoothingTimeConstant: 0,
    minDecibels: -95,
    maxDecibels: -30,
  });
  source.connect(analyser);
  return analyser;
}

export class Microphone {
  /**
   * @param choices deviceId, echoCancellation, noiseSuppression, autoGainControl.
   * @param heard Called with float32 [n] at 24 kHz, every 40 ms.
   * @throws A failure for explain().
   */
  static async open({ deviceId, ...processing }, heard) {
    if (!navigator.mediaDevices?.getUserMedia || !window.isSecureContext) {
      throw { kind: "insecure" };
    }
    const audio = { ...processing, channelCount: 1 };
    if (deviceId) audio.deviceId = { exact: deviceId };
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio });
    } catch ({ name, message }) {
      throw { kind: "microphone", name, message };
    }
    const microphone = new Microphone();
    microphone.stream = stream;
    // Not at 24 kHz: Firefox refuses to connect a microphone to a context of another rate.
    microphone.context = new AudioContext({ latencyHint: "interactive" });
    try {
      await microphone.start(heard);
    } catch ({ name, message }) {
      microphone.close();
      throw { kind: "microphone", name, message };
    }
    return microphone;
  }

  async start(heard) {
    const { context } = this;
    await context.audioWorklet.addModule(new URL("./microphone-worklet.js", import.meta.url));
    const source = context.createMediaStreamSource(this.stream);
    this.analyser = listenTo(context, source, 2048);
    const blockLength = Math.round(BLOCK_S * context.sampleRate);
    const node = new AudioWorkletNode(context, "microphone", { processorOptions: { blockLength } });
    const resampler = new Resampler(context.sampleRate, SAMPLE_RATE);
    node.port.onmessage = ({ data }) => heard(resampler.push(data));
    // Its output is silent; a node that leads nowhere is not run by every browser.
    source.connect(node).connect(context.destination);
    await context.resume();
  }

  set muted(muted) {
    for (const track of this.stream.getTracks()) track.enabled = !muted;
  }

  close() {
    for (const track of this.stream.getTracks()) track.stop();
    this.context.close();
  }
}

export class Player {
  /** @param reported Called with the reports of JitterBuffer and the time they are heard at, ms. */
  static async open(reported, played) {
    const player = new Player();
    player.context = new AudioContext({ sampleRate: SAMPLE_RATE, latencyHint: "interactive" });
    const { context } = player;
    await context.audioWorklet.addModule(new URL("./player-worklet.js", import.meta.url));
    player.node = new AudioWorkletNode(context, "player", { outputChannelCount: [1] });
    player.analyser = listenTo(context, player.node, 1024);
    player.node.connect(context.destination);
    player.node.port.onmessage = ({ data }) => {
      if (data.type === "played") played(data.samples);
      else reported(data, player.heardAt(data.time));
    };
    await context.resume();
    return player;
  }

  /** When what was rendered at a time of the context leaves the loudspeaker, ms. */
  heardAt(time) {
    const { contextTime, performanceTime } = this.context.getOutputTimestamp();
    if (performanceTime) return performanceTime + (time - contextTime) * 1000;
    return performance.now() + (this.context.outputLatency || 0) * 1000;
  }

  async choose(deviceId) {
    if ("setSinkId" in this.context) await this.context.setSinkId(deviceId);
  }

  push(item, samples) {
    this.node.port.postMessage({ call: "push", item, samples }, [samples.buffer]);
  }

  finish(item) {
    this.node.port.postMessage({ call: "finish", item });
  }

  hold() {
    this.node.port.postMessage({ call: "hold" });
  }

  resume() {
    this.node.port.postMessage({ call: "resume" });
  }

  clear() {
    this.node.port.postMessage({ call: "clear" });
  }

  close() {
    this.context.close();
  }
}

/** Loudest of what an analyser hears at present, 0..1 on a scale of decibels. */
export function level(analyser) {
  const samples = new Float32Array(analyser.fftSize);
  analyser.getFloatTimeDomainData(samples);
  const power = samples.reduce((sum, sample) => sum + sample * sample, 0) / samples.length;
  return Math.max(0, Math.min(1, (10 * Math.log10(power + 1e-9) + 60) / 50));
}

/** Devices by kind, once the browser tells their names. */
export async function devices() {
  const all = (await navigator.mediaDevices?.enumerateDevices?.()) ?? [];
  const ofKind = (kind) => all.filter((device) => device.kind === kind && device.deviceId);
  return {
    inputs: ofKind("audioinput"),
    outputs: "setSinkId" in AudioContext.prototype ? ofKind("audiooutput") : [],
  };
}
