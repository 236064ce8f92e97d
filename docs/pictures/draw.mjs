/**
 * `npm run pictures`: draws the pictures of the README, each for GitHub's light and dark pages. The SVG files are
 * committed; a test fails when they are not what this command makes (`--out FOLDER` writes them elsewhere).
 */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { figures } from './figures.mjs'
import { overview } from './overview.mjs'
import { themes } from './svg.mjs'

const given = process.argv.indexOf('--out')
const folder = given < 0 ? fileURLToPath(new URL('.', import.meta.url)) : process.argv[given + 1]

for (const [name, draw] of Object.entries({ overview, figures })) {
  for (const [theme, colours] of Object.entries(themes))
    writeFileSync(join(folder, `${name}-${theme}.svg`), draw(colours))
}
