/** The demo's package: real data, as a Quilt registry in a folder. Its content is fixed, so its top hash is, too. */
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { repository } from '../support/parts.js'
import { type FileContent, type WrittenPackage, writeRegistry } from '../support/registry.js'

export const SAMPLE_TOP_HASH = '7b6d79ecdbe41f4ebd18c3aff9e22a50387ad8ab0fe9a59b80c08cac395b7385'

const META: Readonly<Record<string, object>> = {
  'weather/seattle-weather.csv': {
    source: 'NOAA',
    columns: ['date', 'precipitation', 'temp_max', 'temp_min', 'wind', 'weather'],
    unit: { temp_max: 'Celsius' },
  },
  'weather/seattle-weather-hourly-normals.csv': { source: 'NOAA' },
  'climate/global-temp.csv': { source: 'NASA GISS' },
  'climate/annual-precip.json': { source: 'NOAA' },
  'energy/iowa-electricity.csv': { source: 'EIA' },
  'labor/unemployment.tsv': { source: 'BLS' },
  'labor/us-employment.csv': { source: 'BLS' },
  'biology/penguins.json': { source: 'Palmer Station Antarctica LTER', license: 'CC0-1.0' },
  'places/us-state-capitals.json': { source: 'USGS' },
}

export async function writeSample(registry: string): Promise<WrittenPackage> {
  const files: Record<string, FileContent> = {}
  for (const [key, meta] of Object.entries(META)) {
    files[key] = { bytes: await readFile(join(repository, 'test/sample', key)), meta }
  }
  return writeRegistry(registry, 'quilt/altair', files, {
    message: 'nine public data sets',
    userMeta: { from: 'vega-datasets 3.2.1', licenses: ['public domain', 'CC0-1.0'] },
    timestamp: 1_700_000_000,
    directoryMeta: { weather: { place: 'Seattle' } },
  })
}
