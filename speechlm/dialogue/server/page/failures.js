// What went wrong, said to a person, with what to do about it. No DOM in here.

const MICROPHONE = {
  NotAllowedError: [
    "The microphone is blocked",
    "Allow it for this page in the address bar or the browser's settings, then try again.",
  ],
  NotFoundError: ["No microphone was found", "Plug one in, or choose another in the settings."],
  NotReadableError: [
    "The microphone is in use",
    "Another program holds it, or the system refused it. Close that program, then try again.",
  ],
  OverconstrainedError: [
    "The chosen microphone is gone",
    "Choose another one in the settings, then try again.",
  ],
};

const CLOSED = {
  1000: ["The conversation is over", "It was closed after a while without a word, or at its limit."],
  1001: ["The server is stopping", "It finishes what it does and takes no new conversation."],
  1008: ["The server closed the conversation", "It does not allow this one to go on."],
  1009: ["The server closed the conversation", "A message was larger than it allows."],
  1011: ["The server has a fault", "Its log says more. Try again in a moment."],
  1013: ["The connection is too slow", "Sound waited too long on its way here. Try again."],
};

const CODES = {
  session_limit_reached: ["All places are taken", "Others are talking. Try again in a moment."],
  draining: ["The server is stopping", "It takes no new conversation. Try again in a moment."],
  worker_unavailable: [
    "The model is being loaded anew",
    "It had stopped answering. Try again in a moment.",
  ],
};

/**
 * @param failure kind: "insecure", "microphone" (with the error's `name`), "token", "refused"
 *   (with the server's `message`), "unreachable", "closed" (with `code` and `reason`), "answer", "server".
 * @returns {{title: string, text: string, asksToken: boolean, fatal: boolean}} fatal: the
 *   conversation cannot go on.
 */
export function explain(failure) {
  const said = (title, text, more = {}) => ({ title, text, asksToken: false, fatal: true, ...more });
  switch (failure.kind) {
    case "insecure":
      return said(
        "The browser gives no microphone here",
        "It does so only on a safe address: open the page as http://localhost, " +
          "or start the server with --self-signed and open it as https.",
      );
    case "microphone":
      return said(
        ...(MICROPHONE[failure.name] ?? [
          "The microphone could not be opened",
          failure.message || "The browser gave no reason.",
        ]),
      );
    case "token":
      return said(
        failure.given ? "The server refused this token" : "This server asks for a token",
        "Whoever runs the server has one. It is kept until this page is closed.",
        { asksToken: true },
      );
    case "refused":
      return said(
        "The server refused the connection",
        failure.message ||
          "Perhaps it allows other addresses only: start it with --origin and this page's address.",
      );
    case "unreachable":
      return said(
        "The server cannot be reached",
        "It may have been stopped, or the network is down. Start it, then try again.",
      );
    case "closed":
      return said(
        ...(CODES[failure.code] ??
          CLOSED[failure.code] ?? ["The connection was lost", "The network broke it off."]),
      );
    case "answer":
      return said("This answer failed", failure.message || "The server gave no reason.", {
        fatal: false,
      });
    default: {
      const known = CODES[failure.code];
      return known
        ? said(...known)
        : said("The server refused something", failure.message || "", { fatal: false });
    }
  }
}

/** Whether to try again without being asked: it was not a decision of the server. */
export function worthRetrying({ kind, code }) {
  return kind === "unreachable" || (kind === "closed" && [1005, 1006, 1012].includes(code));
}
