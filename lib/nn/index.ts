export {
  Attention,
  type AttentionForwardOptions,
  type AttentionLayerOptions,
  CausalSelfAttention,
  type CausalSelfAttentionOptions,
} from './attention.js'
export { SparseMoEBlock, type SparseMoEBlockOptions } from './block.js'
export { Dropout } from './dropout.js'
export { Embedding } from './embedding.js'
export { ExpertChoiceGating, type ExpertChoiceGatingOptions } from './expert-choice-gating.js'
export type { ExpertGroups, GroupLayer } from './expert-groups.js'
export { Experts, type ExpertsOptions } from './experts.js'
export { FeedForward, type FeedForwardOptions } from './feed-forward.js'
export { type GatingForwardOptions, TopNGating, type TopNGatingOptions } from './gating.js'
export type { BackwardHook, ForwardHook, ForwardPreHook } from './hooks.js'
export { type LayerOptions, Linear, type LinearLayerOptions, type ProductLayerOptions } from './linear.js'
export { type LoadOptions, type LoadReport, Module, type StateDict, type StateEntry } from './module.js'
export { MoE } from './moe.js'
export type { MoEForwardOptions, MoEOptions } from './moe-options.js'
export { MoEResult } from './moe-result.js'
export { type LayerStats, MoEMonitor, type MoEMonitorOptions } from './monitor.js'
export { LayerNorm, type LayerNormOptions, RMSNorm } from './norm.js'
export { Parameter } from './parameter.js'
export { type Recomputable, recompute } from './recompute.js'
export type { RouterInputRandom } from './router-input.js'
export type { RoutingStats } from './routing-stats.js'
export { Sequential, type SequentialLayer, type TensorModule } from './sequential.js'
export type { SharedExperts } from './shared-experts.js'
export type { SharedExpertsOptions } from './shared-options.js'
export type { BufferLayerNorm, SoftExperts } from './soft-experts.js'
export { SoftMoE, type SoftMoEForwardOptions, type SoftMoEOptions, type SoftMoERandom } from './soft-moe.js'
export type { UserExperts } from './user-experts.js'
export type { FloatArray, GradHandle, InputGradient, RoutingArrays } from './with-grad.js'
