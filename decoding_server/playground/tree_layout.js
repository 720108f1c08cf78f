// Places for the nodes of a tree: leaves side by side, parents above the middle of their children.

/**
 * children: a map from a node's id to its children's ids. Returns {places: Map id -> {column, row}, columns, rows}.
 * No recursion: a search can be hundreds of nodes deep.
 */
export function layout(children, root = 0) {
  const places = new Map();
  const order = [];
  const stack = [[root, 0]];
  let rows = 0;
  while (stack.length > 0) {
    const [id, row] = stack.pop();
    if (places.has(id)) continue;
    places.set(id, { column: 0, row });
    order.push(id);
    rows = Math.max(rows, row + 1);
    const below = children.get(id) ?? [];
    for (let i = below.length - 1; i >= 0; i -= 1) stack.push([below[i], row + 1]);
  }
  let columns = 0;
  for (const id of order) {
    if ((children.get(id) ?? []).length === 0) {
      places.get(id).column = columns;
      columns += 1;
    }
  }
  for (const id of order.toReversed()) {
    const below = children.get(id) ?? [];
    if (below.length === 0) continue;
    const first = places.get(below[0]).column;
    const last = places.get(below[below.length - 1]).column;
    places.get(id).column = (first + last) / 2;
  }
  return { places, columns: Math.max(columns, 1), rows: Math.max(rows, 1) };
}
