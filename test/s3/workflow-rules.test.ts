/** The tables of schemas and YAML that test/unit holds Bobbin to are what quilt3's own Python says. */
import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import t from 'tap'
import { part, repository } from '../support/parts.js'
import { SCHEMA_TABLE, titleOf, YAML_TABLE } from '../support/schema-table.js'

interface Answers {
  readonly schemas: readonly (boolean | null)[]
  readonly yaml: readonly (readonly unknown[])[]
}

t.setTimeout(120_000)

t.test('quilt3 judges schemas and YAML as the tables say (S148, S149)', async t => {
  const task = {
    schemas: SCHEMA_TABLE.map(([schema, value]) => [schema, value]),
    yaml: YAML_TABLE.map(([text]) => text),
  }
  const { status, stdout, stderr } = spawnSync(part('quilt3'), [join(repository, 'test/support/judge_rules.py')], {
    input: JSON.stringify(task),
    encoding: 'utf8',
  })
  t.equal(status, 0, stderr)
  const { schemas, yaml } = JSON.parse(stdout) as Answers
  for (const [i, [schema, value, fits]] of SCHEMA_TABLE.entries())
    t.equal(schemas[i], fits ?? null, `${schema} of ${value}`)
  for (const [i, [text, json]] of YAML_TABLE.entries()) {
    if (json === 'refused') t.equal(yaml[i]!.length, 1, titleOf(text))
    else t.ok(isDeepStrictEqual(yaml[i], json === undefined ? [] : [JSON.parse(json)]), titleOf(text))
  }
})
