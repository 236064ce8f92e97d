/**
 * Whether two values are equal to Python's `==`, as quilt3 compares what `json` has read: true is 1, 1.0 is 1, the order of
 * members does not matter. NaN is equal to itself, since `json` has one NaN for all. Integers are `bigint` beyond 2^53.
 */
export function isPythonEqual(a: unknown, b: unknown): boolean {
  const [x, y] = [asNumber(a), asNumber(b)]
  // Neither less nor greater: === tells a bigint from a number.
  if (x !== undefined && y !== undefined) return (x <= y && x >= y) || (Number.isNaN(x) && Number.isNaN(y))
  if (Array.isArray(a))
    return Array.isArray(b) && a.length === b.length && a.every((item, i) => isPythonEqual(item, b[i]))
  if (!isObject(a) || !isObject(b)) return a === b
  const names = Object.keys(a)
  return (
    names.length === Object.keys(b).length &&
    names.every(name => Object.hasOwn(b, name) && isPythonEqual(a[name], b[name]))
  )
}

function asNumber(value: unknown): number | bigint | undefined {
  if (typeof value === 'boolean') return Number(value)
  return typeof value === 'number' || typeof value === 'bigint' ? value : undefined
}

function isObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}
