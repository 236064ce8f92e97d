/** The statements of a run into its folder, and all in signed envelopes when there is a key. */
import type { KeyObject } from 'node:crypto'
import { signEnvelope } from './dsse.js'
import type { Ledger } from './ledger.js'
import type { RunFacts } from './run-facts.js'
import type { RunFolder } from './run-folder.js'
import type { Evidence } from './statement.js'
import { ENVELOPES_FILE, STATEMENTS } from './statements.js'

/** Throws LOCAL_IO. */
export function writeStatements(
  run: RunFolder,
  facts: RunFacts,
  ledger: Ledger,
  evidence: Omit<Evidence, 'ledger'>,
  key: KeyObject | undefined,
): void {
  const statements = STATEMENTS.map(({ name, make }) => ({ name, statement: make(facts, ledger, evidence) }))
  for (const { name, statement } of statements) run.writeFile(name, `${JSON.stringify(statement, undefined, 2)}\n`)
  if (key === undefined) return
  const envelopes = statements.map(({ statement }) => JSON.stringify(signEnvelope(JSON.stringify(statement), key)))
  run.writeFile(ENVELOPES_FILE, `${envelopes.join('\n')}\n`)
}
