// The large scripts of a page (plotly, CircuitsVis) are kept as gzip in base64, a third of their size.
// This decompresses and runs them, and then runs the small scripts that wait for them, in page order.
// Written without modern syntax, so that an old browser still reaches the message that says so.
window.lensplug = {
  // The bytes of a packed text. A stream from a Blob: the content policy allows no request.
  unpack: function (text) {
    var binary = atob(text.trim());
    var bytes = new Uint8Array(binary.length);
    for (var at = 0; at < binary.length; at++) bytes[at] = binary.charCodeAt(at);
    var stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  },
};

(function () {
  var nonce = document.currentScript.nonce; // by which the content policy recognises the page's own scripts
  function run(code) {
    var script = document.createElement("script");
    script.nonce = nonce;
    script.textContent = code;
    document.head.appendChild(script).remove();
  }
  function all(selector) { return Array.prototype.slice.call(document.querySelectorAll(selector)); }
  function failed(error) {
    var sentence = document.createElement("p");
    sentence.className = "failed";
    sentence.textContent = "The figures of this page could not be unpacked (" + error + "). They need a browser with "
      + "DecompressionStream: Chrome or Edge 80, Firefox 113, Safari 16.4, or later.";
    all("p.waits").forEach(function (other) { other.remove(); });
    document.querySelector("main").prepend(sentence);
  }
  try {
    var packed = all("script.packed").map(function (script) { return window.lensplug.unpack(script.textContent); });
    window.lensplug.ready = Promise.all(packed).then(function (files) {
      all("p.waits").forEach(function (sentence) { sentence.remove(); });
      files.forEach(function (file) { run(new TextDecoder().decode(file)); });
      all("script.waiting").forEach(function (script) { run(script.textContent); });
    }).catch(failed);
  } catch (error) { failed(error); }
})();
