// Browsers start no worker from disk. There the search runs in a hidden frame instead.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(script) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      this.inside = frame.contentWindow;
      this.early = [];
      this.inside.postMessage = (data) => this.deliver(this, data);
      const code = this.inside.document.createElement("script");
      code.src = script;
      code.onload = () => {
        for (const data of this.early) this.deliver(this.inside, data);
        this.early = null;
      };
      this.inside.document.body.append(code);
    }

    deliver(target, data) {
      const event = new MessageEvent("message", { data });
      target.dispatchEvent(event);
      if (target === this && this.onmessage) this.onmessage(event);
    }

    postMessage(data) {
      if (this.early) this.early.push(data);
      else this.deliver(this.inside, data);
    }

    terminate() {}
  };
}
