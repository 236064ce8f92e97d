/** What makes a plan's sample table, in a process of its own (daemon/confined/confined.ts): the walk over a package. */
import { PackageIndex } from '../../daemon/index/package-index.js'
import type { PlanDocument } from '../plan/plan-document.js'
import { buildSampleTable, type TableFacts } from './sample-table.js'

export interface TableTask {
  readonly indexPath: string
  readonly manifestPath: string
  readonly document: PlanDocument
  /** Where the table goes. */
  readonly path: string
}

// A default export is what runConfined asks for.
export default async function build(task: TableTask): Promise<TableFacts> {
  const index = new PackageIndex(task.indexPath, task.manifestPath)
  try {
    return await buildSampleTable(index, task.document, task.path)
  } finally {
    index.close()
  }
}
