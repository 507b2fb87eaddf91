(function () {
  "use strict";
  var root = document.documentElement;
  var button = document.getElementById("theme");
  var themes = ["system", "light", "dark"];
  function remembered() {
    try { return localStorage.getItem("laconic-theme"); } catch (error) { return null; }
  }
  function setTheme(name) {
    if (name === "system") { root.removeAttribute("data-theme"); } else { root.setAttribute("data-theme", name); }
    button.textContent = "Theme: " + name;
    try { localStorage.setItem("laconic-theme", name); } catch (error) { return; }
  }
  var theme = themes.indexOf(remembered()) < 0 ? "system" : remembered();
  setTheme(theme);
  button.hidden = false;
  button.addEventListener("click", function () {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    setTheme(theme);
  });

  function compare(type, up) {
    return function (one, two) {
      var a = one.key, b = two.key;
      if (a === "" || b === "") { return (a === "") - (b === ""); }
      var order = type === "number" ? Number(a) - Number(b) : a.localeCompare(b, undefined, { numeric: true });
      return up ? order : -order;
    };
  }
  function sortBy(table, index, type, up) {
    var body = table.tBodies[0];
    var rows = Array.prototype.map.call(body.rows, function (row) {
      return { row: row, key: row.cells[index].getAttribute("data-sort") };
    });
    rows.sort(compare(type, up)).forEach(function (item) { body.appendChild(item.row); });
  }
  Array.prototype.forEach.call(document.querySelectorAll("table.sortable"), function (table) {
    var heads = table.tHead.rows[0].cells;
    Array.prototype.forEach.call(heads, function (head, index) {
      var press = document.createElement("button");
      press.type = "button";
      press.className = "sort";
      press.textContent = head.textContent;
      head.textContent = "";
      head.appendChild(press);
      press.addEventListener("click", function () {
        var up = head.getAttribute("aria-sort") !== "ascending";
        Array.prototype.forEach.call(heads, function (other) { other.removeAttribute("aria-sort"); });
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        sortBy(table, index, head.getAttribute("data-type"), up);
      });
    });
  });

  var filter = document.getElementById("filter");
  if (filter) {
    filter.parentNode.hidden = false;
    filter.addEventListener("input", function () {
      var wanted = filter.value.toLowerCase(), count = 0;
      var rows = document.getElementById(filter.getAttribute("data-table")).tBodies[0].rows;
      Array.prototype.forEach.call(rows, function (row) {
        row.hidden = row.textContent.toLowerCase().indexOf(wanted) < 0;
        count += row.hidden ? 0 : 1;
      });
      document.getElementById("shown").textContent = wanted ? count + " shown" : "";
    });
  }
})();
