// Tables, as GitHub writes them: a row of names, a row of dashes, rows of cells.

const DASHES = /^ {0,3}\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

/** The table that begins at a line, or null. */
export function parseTable(lines, at) {
  const [names, dashes] = [lines[at], lines[at + 1]];
  if (!names.includes("|") || dashes === undefined || !dashes.includes("-") || !DASHES.test(dashes))
    return null;
  const header = cells(names);
  const align = cells(dashes).map(alignment);
  if (header.length !== align.length) return null;
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|")) end += 1;
  const rows = lines.slice(at + 2, end).map((line) => fitted(cells(line), header.length));
  return [{ type: "table", header, align, rows }, end];
}

/** The cells between bars; a bar behind a backslash is text. */
function cells(line) {
  const inner = line
    .trim()
    .replace(/^\|/, "")
    .replace(/(?<!\\)\|$/, "");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function alignment(dashes) {
  const [left, right] = [dashes.startsWith(":"), dashes.endsWith(":")];
  return left && right ? "center" : right ? "right" : "left";
}

function fitted(row, width) {
  return Array.from({ length: width }, (_, column) => row[column] ?? "");
}
