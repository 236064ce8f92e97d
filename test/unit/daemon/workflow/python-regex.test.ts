/** Patterns and the texts in which the `re` of CPython 3.11.7 finds them, a 1 per text that it does; null: it refuses them. */
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { runConfined } from '../../../../daemon/confined/confined.js'
import { pythonRegExp } from '../../../../daemon/workflow/python-regex.js'

const path = fileURLToPath(new URL('../../../../../test/unit/daemon/workflow/python-regex.json', import.meta.url))
const { texts, patterns } = JSON.parse(readFileSync(path, 'utf8')) as {
  readonly texts: readonly string[]
  readonly patterns: readonly (readonly [pattern: string, found: string | null])[]
}
/** Python takes them, and we say that we cannot. */
const NOT_TRANSLATED = [
  ...['(a)?\\1', '(?:(a)|b)\\1', '(?!(a)b)\\1', '(a)*\\1', '(a)?(?(1)b|c)'],
  ...['(?i:a)b', '(?i)(?-i:a)', '(?ai)k', '\\N{DIGIT THREE}'],
]

t.test('patterns find what they find in Python, or are refused with words (S145)', async t => {
  for (const [pattern, found] of patterns) {
    if (found === null || NOT_TRANSLATED.includes(pattern)) {
      const words = found === null ? /cannot be used as Python uses it: ./ : /: .*(Bobbin|may not have taken part)/
      t.throws(() => pythonRegExp(pattern), { code: 'INVALID_ARGUMENT', message: words }, pattern)
      continue
    }
    const expression = pythonRegExp(pattern)
    t.strictSame(
      texts.filter(text => expression.test(text)),
      texts.filter((_, i) => found[i] === '1'),
      pattern,
    )
  }
  for (const pattern of [`${'('.repeat(100_000)}a`, `${'('.repeat(100_000)}a${')'.repeat(100_000)}`])
    t.throws(() => pythonRegExp(pattern), { code: 'INVALID_ARGUMENT' }, pattern.slice(0, 20))
})

t.test('a workflow with a pattern that cannot be used is refused, and is not a bug (S145)', async t => {
  const rules = new URL('../../../../daemon/workflow/workflow-rules.js', import.meta.url)
  const work = (task: object) => runConfined(rules, task, { what: 'apply them', deadlineMs: 60_000, heapMib: 128 })
  const refused = { code: 'INVALID_ARGUMENT', message: /a \( has no \)/ } as const
  await t.rejects(work({ kind: 'check', name: 'a/b', handlePattern: '(' }), refused)
  const metadata = { url: 's3://x/y', text: '{"patternProperties": {"(": {"type": "null"}}}' }
  await t.rejects(work({ kind: 'check', name: 'a/b', metadata, userMeta: '{}' }), refused)
  const late = { kind: 'check', name: `${'a'.repeat(60)}!`, handlePattern: '^(a+)+\\Z' }
  await t.rejects(runConfined(rules, late, { what: 'apply it', deadlineMs: 1500, heapMib: 128 }), {
    message: /longer than/,
  })
  await work({ kind: 'check', name: 'Me/é', handlePattern: '(?i)\\A(?P<who>me)/\\w\\Z' })
})
