/** The two statements of a run into its folder, and both in signed envelopes when there is a key. */
import type { KeyObject } from 'node:crypto'
import { signEnvelope } from './dsse.js'
import type { Ledger } from './ledger.js'
import type { RunFacts } from './run-facts.js'
import type { RunFolder } from './run-folder.js'
import { type Evidence, provenance, trace } from './statement.js'

/** Throws LOCAL_IO. */
export function writeStatements(
  run: RunFolder,
  facts: RunFacts,
  ledger: Ledger,
  evidence: Omit<Evidence, 'ledger'>,
  key: KeyObject | undefined,
): void {
  const statements = [
    ['statement.json', provenance(facts, { ...evidence, ledger: ledger.facts })],
    ['trace.json', trace(facts, ledger)],
  ] as const
  for (const [name, statement] of statements) run.writeFile(name, `${JSON.stringify(statement, undefined, 2)}\n`)
  if (key === undefined) return
  const envelopes = statements.map(([, statement]) => JSON.stringify(signEnvelope(JSON.stringify(statement), key)))
  run.writeFile('run.intoto.jsonl', `${envelopes.join('\n')}\n`)
}
