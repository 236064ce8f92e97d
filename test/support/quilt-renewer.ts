/** A process that needs credentials by Quilt's login several times at once, and says how that went, as JSON. */
import { quiltLogin } from '../../daemon/source/quilt-login.js'

// Each login has descriptors of its own, as those of several threads have.
const logins = await Promise.all(Array.from({ length: Number(process.argv[2]) }, () => quiltLogin(30_000)))
const outcomes = await Promise.allSettled(logins.map(login => login!.provider()))
const said = outcomes.map(outcome =>
  outcome.status === 'fulfilled' ? outcome.value.accessKeyId : String(outcome.reason.message),
)
console.log(JSON.stringify(said))
