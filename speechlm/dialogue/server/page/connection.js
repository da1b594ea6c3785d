// The way to the server: OpenAI's Realtime events over a WebSocket of the page's own host.

const address = (path) => new URL(path, document.baseURI);

/**
 * What the server serves.
 *
 * @returns {{model: string} | {failure: object}}
 */
export async function ask(token) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let answer;
  try {
    answer = await fetch(address("v1/models"), { headers, cache: "no-store" });
  } catch {
    return { failure: { kind: "unreachable" } };
  }
  if (answer.status === 401) return { failure: { kind: "token", given: Boolean(token) } };
  const said = await answer.json().catch(() => ({}));
  if (answer.ok) return { model: said.data?.[0]?.id ?? "" };
  return { failure: { kind: "refused", status: answer.status, message: said.error?.message } };
}

/** One conversation's socket. */
export class Connection {
  /**
   * @param received Called with every event of the server.
   * @param closed Called once, with a failure, unless close() was called before.
   */
  constructor({ model, token, received, closed }) {
    const url = address("v1/realtime");
    url.protocol = url.protocol.replace("http", "ws");
    url.searchParams.set("model", model);
    const protocols = ["realtime", ...(token ? [`openai-insecure-api-key.${token}`] : [])];
    this.socket = new WebSocket(url, protocols);
    this.refusal = null;
    let opened = false;
    this.socket.onopen = () => (opened = true);
    this.socket.onmessage = ({ data }) => {
      const event = JSON.parse(data);
      // A refusal comes as an event just before the close, which itself says less.
      if (event.type === "error") this.refusal = event.error.code;
      else this.refusal = null;
      received(event);
    };
    this.socket.onclose = async ({ code }) => {
      if (opened) return closed({ kind: "closed", code: this.refusal ?? code });
      // The browser does not tell a page why a socket was refused.
      const { failure } = await ask(token);
      closed(failure ?? { kind: "refused" });
    };
  }

  send(event) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(event));
  }

  close() {
    this.socket.onclose = null;
    this.socket.onmessage = null;
    this.socket.close(1000);
  }
}
