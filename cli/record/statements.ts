/** Which statements a record has, in which files, and in which order they are signed: writing, verifying and pushing go by this list. */
import type { Ledger } from './ledger.js'
import type { RunFacts } from './run-facts.js'
import { type Evidence, provenance, trace } from './statement.js'

export const PROVENANCE_FILE = 'statement.json'
/** All statements in signed envelopes, one per line, where there is a key. */
export const ENVELOPES_FILE = 'run.intoto.jsonl'

interface StatementFile {
  readonly name: string
  make(facts: RunFacts, ledger: Ledger, evidence: Omit<Evidence, 'ledger'>): object
}

export const STATEMENTS: readonly StatementFile[] = [
  {
    name: PROVENANCE_FILE,
    make: (facts, ledger, evidence) => provenance(facts, { ...evidence, ledger: ledger.facts }),
  },
  { name: 'trace.json', make: (facts, ledger) => trace(facts, ledger) },
]
