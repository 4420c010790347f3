/**
 * The entries of st-moe on one page, for `npm run docs:api`: `st-moe` itself, and as namespaces `st-moe/language-model` and
 * `st-moe/tfjs`.
 *
 * @packageDocumentation
 */

/** `st-moe/language-model` */
export * as languageModel from '../language-model/index.js'
export * from '../lib/index.js'
/** `st-moe/tfjs` */
export * as tfjs from '../lib/tfjs/index.js'
