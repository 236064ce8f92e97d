/**
 * Judges values by JSON Schema, Draft 7, as Python's `jsonschema` does, which quilt3 asks.
 *
 * Validators that make code of schemas have extensions, and do without what is rare: members that every object inherits
 * (`constructor`), `nullable`, `$async`, integers beyond 2^53. Here keywords that Draft 7 does not know say nothing,
 * members are an object's own, and integers that a double cannot hold are `bigint`s. `$ref` is not known: quilt3 refuses it.
 */
import { compareCodePoints } from '../json/canonical-json.js'
import { isPythonEqual } from '../json/python-equal.js'

export type Check = (value: unknown, path?: string) => string | undefined

type Members = Readonly<Record<string, unknown>>
type Keyword = (given: unknown, schema: Members) => Check
type Amount = number | bigint

/** What a value violates, with where; `undefined`: nothing. The schema itself has to be valid. Throws for a pattern that is not one. */
export function compileDraft7(schema: unknown, regExp: (pattern: string) => RegExp): Check {
  const compile = (inner: unknown): Check => compileDraft7(inner, regExp)
  if (typeof schema === 'boolean') return (_, path = '') => (schema ? undefined : problem(path, 'is not allowed'))
  const keywords = keywordsOf(compile, regExp)
  const checks = Object.entries(schema as Members)
    .filter(([name]) => keywords.has(name))
    .map(([name, given]) => keywords.get(name)!(given, schema as Members))
  return (value, path = '') => first(checks, check => check(value, path))
}

function keywordsOf(compile: (schema: unknown) => Check, regExp: (pattern: string) => RegExp): Map<string, Keyword> {
  const all = (given: unknown) => (given as unknown[]).map(compile)
  const byName = (given: unknown) =>
    Object.entries(given as Members).map(([name, inner]) => [name, compile(inner)] as const)
  const byPattern = (given: unknown) => byName(given).map(([pattern, check]) => [regExp(pattern), check] as const)
  return new Map<string, Keyword>([
    ['type', types => rule(`must be ${types}`, value => [types].flat().some(type => hasType(value, type as string)))],
    ['const', wanted => rule('must be equal to constant', value => isEqual(value, wanted))],
    [
      'enum',
      wanted => rule('must be one of the values', value => (wanted as unknown[]).some(one => isEqual(value, one))),
    ],
    ['allOf', given => every(all(given))],
    ['anyOf', given => counted('must match a schema in anyOf', all(given), count => count > 0)],
    ['oneOf', given => counted('must match exactly one schema in oneOf', all(given), count => count === 1)],
    ['not', given => counted('must NOT be valid', [compile(given)], count => count === 0)],
    [
      'if',
      (given, schema) => {
        const [test, yes, no] = [given, own(schema, 'then', true), own(schema, 'else', true)].map(compile)
        return (value, path) => (test!(value) === undefined ? yes! : no!)(value, path)
      },
    ],

    // Written as refusals, since Python's NaN is below no bound and above none.
    ['minimum', limit => amounts(`must be >= ${limit}`, value => !(value < (limit as Amount)))],
    ['maximum', limit => amounts(`must be <= ${limit}`, value => !(value > (limit as Amount)))],
    ['exclusiveMinimum', limit => amounts(`must be > ${limit}`, value => !(value <= (limit as Amount)))],
    ['exclusiveMaximum', limit => amounts(`must be < ${limit}`, value => !(value >= (limit as Amount)))],
    ['multipleOf', step => amounts(`must be multiple of ${step}`, value => isMultiple(value, step as Amount))],

    ['minLength', n => texts(`must NOT have fewer than ${n} characters`, value => lengthOf(value) >= (n as number))],
    ['maxLength', n => texts(`must NOT have more than ${n} characters`, value => lengthOf(value) <= (n as number))],
    [
      'pattern',
      given => {
        const expression = regExp(given as string)
        return texts(`must match pattern "${given}"`, value => expression.test(value))
      },
    ],

    ['minItems', n => lists(failing(`must NOT have fewer than ${n} items`, list => list.length >= (n as number)))],
    ['maxItems', n => lists(failing(`must NOT have more than ${n} items`, list => list.length <= (n as number)))],
    ['uniqueItems', isOn => lists(failing('must NOT have duplicate items', list => !isOn || isUnique(list)))],
    [
      'contains',
      given => {
        const check = compile(given)
        return lists(failing('must contain a valid item', list => list.some(item => check(item) === undefined)))
      },
    ],
    [
      'items',
      given => {
        const checks = Array.isArray(given) ? all(given) : compile(given)
        return lists((list, path) =>
          first(list.entries(), ([i, item]) =>
            (typeof checks === 'function' ? checks : checks[i])?.(item, `${path}/${i}`),
          ),
        )
      },
    ],
    [
      'additionalItems',
      (given, schema) => {
        const items = own(schema, 'items', true)
        const check = compile(given)
        if (!Array.isArray(items)) return () => undefined
        return lists((list, path) =>
          first(list.slice(items.length).entries(), ([i, item]) => check(item, `${path}/${items.length + i}`)),
        )
      },
    ],

    [
      'minProperties',
      n => objects(failing(`must NOT have fewer than ${n} properties`, o => Object.keys(o).length >= (n as number))),
    ],
    [
      'maxProperties',
      n => objects(failing(`must NOT have more than ${n} properties`, o => Object.keys(o).length <= (n as number))),
    ],
    ['required', names => objects((object, path) => lacking(object, names as string[], path))],
    [
      'propertyNames',
      given => {
        const check = compile(given)
        return objects((object, path) => first(Object.keys(object), name => check(name, path)))
      },
    ],
    [
      'properties',
      given => {
        const checks = byName(given)
        return objects((object, path) =>
          first(checks, ([name, check]) =>
            Object.hasOwn(object, name) ? check(object[name], `${path}/${name}`) : undefined,
          ),
        )
      },
    ],
    [
      'patternProperties',
      given => {
        const checks = byPattern(given)
        return objects((object, path) =>
          first(Object.entries(object), ([name, value]) =>
            first(checks, ([pattern, check]) => (pattern.test(name) ? check(value, `${path}/${name}`) : undefined)),
          ),
        )
      },
    ],
    [
      'additionalProperties',
      (given, schema) => {
        const check = compile(given)
        const named = own(schema, 'properties', {}) as Members
        const patterns = Object.keys(own(schema, 'patternProperties', {}) as Members).map(regExp)
        return objects((object, path) =>
          first(Object.entries(object), ([name, value]) =>
            Object.hasOwn(named, name) || patterns.some(pattern => pattern.test(name))
              ? undefined
              : check(value, `${path}/${name}`),
          ),
        )
      },
    ],
    [
      'dependencies',
      given => {
        const needs = Object.entries(given as Members).map(
          ([name, need]) =>
            [name, Array.isArray(need) ? objects((o, path) => lacking(o, need, path)) : compile(need)] as const,
        )
        return objects((object, path) =>
          first(needs, ([name, check]) => (Object.hasOwn(object, name) ? check(object, path) : undefined)),
        )
      },
    ],
    // They are not applied, but a pattern in them that is not one makes the whole schema unusable.
    [
      'definitions',
      given => {
        byName(given)
        return () => undefined
      },
    ],
  ])
}

function problem(path: string, message: string): string {
  return `${path || 'the whole'} ${message}`
}

function first<Item>(items: Iterable<Item>, check: (item: Item) => string | undefined): string | undefined {
  for (const item of items) {
    const found = check(item)
    if (found !== undefined) return found
  }
  return undefined
}

function rule(message: string, isValid: (value: unknown) => boolean): Check {
  return (value, path = '') => (isValid(value) ? undefined : problem(path, message))
}

function every(checks: readonly Check[]): Check {
  return (value, path) => first(checks, check => check(value, path))
}

function counted(message: string, checks: readonly Check[], isValid: (count: number) => boolean): Check {
  return rule(message, value => isValid(checks.filter(check => check(value) === undefined).length))
}

function amounts(message: string, isValid: (value: Amount) => boolean): Check {
  return rule(message, value => !isAmount(value) || isValid(value))
}

function texts(message: string, isValid: (value: string) => boolean): Check {
  return rule(message, value => typeof value !== 'string' || isValid(value))
}

function lists(check: (list: readonly unknown[], path: string) => string | undefined): Check {
  return (value, path = '') => (Array.isArray(value) ? check(value, path) : undefined)
}

function objects(check: (object: Members, path: string) => string | undefined): Check {
  return (value, path = '') => (isObject(value) ? check(value, path) : undefined)
}

function failing<Value>(message: string, isValid: (value: Value) => boolean) {
  return (value: Value, path: string) => (isValid(value) ? undefined : problem(path, message))
}

function lacking(object: Members, names: readonly string[], path: string): string | undefined {
  return first(names, name =>
    Object.hasOwn(object, name) ? undefined : problem(path, `must have required property '${name}'`),
  )
}

function own(schema: Members, name: string, otherwise: unknown): unknown {
  return Object.hasOwn(schema, name) ? schema[name] : otherwise
}

function isAmount(value: unknown): value is Amount {
  return typeof value === 'number' || typeof value === 'bigint'
}

/** Dates, which YAML has, are objects to neither language's JSON. */
function isObject(value: unknown): value is Members {
  return typeof value === 'object' && value !== null && !Array.isArray(value) && !(value instanceof Date)
}

function hasType(value: unknown, type: string): boolean {
  if (type === 'integer') return typeof value === 'bigint' || Number.isInteger(value)
  if (type === 'number') return isAmount(value)
  if (type === 'array') return Array.isArray(value)
  if (type === 'object') return isObject(value)
  if (type === 'null') return value === null
  return typeof value === type
}

/** Doubles have an exact remainder; an integer that is not a double is divided as one by a double that is not whole, as in Python. */
function isMultiple(value: Amount, step: Amount): boolean {
  if (typeof value !== 'bigint' && typeof step !== 'bigint') {
    if (Number.isInteger(step)) return value % step === 0
    const quotient = value / step
    return Number.isFinite(quotient) ? Number.isInteger(quotient) : value % step === 0
  }
  const [a, b] = [whole(value), whole(step)]
  return a !== undefined && b !== undefined ? a % b === 0n : Number.isInteger(Number(value) / Number(step))
}

function whole(value: Amount): bigint | undefined {
  if (typeof value === 'bigint') return value
  return Number.isInteger(value) ? BigInt(value) : undefined
}

/** In code points, as Python counts. */
function lengthOf(text: string): number {
  let length = 0
  for (const _ of text) length++
  return length
}

/**
 * As `jsonschema` finds equal items: it sorts, and compares neighbours, which misses some around a NaN; what cannot be sorted is
 * compared each with each. JavaScript's sort makes the comparisons of CPython 3.11's, from which it was ported.
 */
function isUnique(list: readonly unknown[]): boolean {
  let sorted: unknown[]
  try {
    if (list.length > 1 && list.some(item => typeof item === 'boolean')) throw new NoOrder()
    sorted = [...list].sort((a, b) => (isLess(a, b) ? -1 : 1))
  } catch (error) {
    if (!(error instanceof NoOrder)) throw error
    return !list.some((one, i) => list.slice(0, i).some(other => isEqual(one, other)))
  }
  return !sorted.some((item, i) => i > 0 && isEqual(sorted[i - 1], item))
}

class NoOrder extends Error {}

/** Python's `<`. Throws NoOrder for what Python does not compare. */
function isLess(a: unknown, b: unknown): boolean {
  if (Array.isArray(a) && Array.isArray(b)) {
    const at = a.findIndex((item, i) => i >= b.length || !isPythonEqual(item, b[i]))
    return at < 0 ? a.length < b.length : at < b.length && isLess(a[at], b[at])
  }
  if (typeof a === 'string' && typeof b === 'string') return compareCodePoints(a, b) < 0
  const [x, y] = [a, b].map(value => (typeof value === 'boolean' ? Number(value) : value))
  if (isAmount(x) && isAmount(y)) return x < y
  throw new NoOrder()
}

function isEqual(a: unknown, b: unknown): boolean {
  // Neither less nor greater: === tells a bigint from a number. Python's json has one NaN for all, which is itself.
  if (isAmount(a) && isAmount(b)) return (a <= b && a >= b) || (Number.isNaN(a) && Number.isNaN(b))
  if (Array.isArray(a)) return Array.isArray(b) && a.length === b.length && a.every((item, i) => isEqual(item, b[i]))
  if (!isObject(a) || !isObject(b)) return a === b
  const names = Object.keys(a)
  return (
    names.length === Object.keys(b).length && names.every(name => Object.hasOwn(b, name) && isEqual(a[name], b[name]))
  )
}
