export { Adafactor, type AdafactorOptions, type AdafactorValues } from './adafactor.js'
export { AdamW, type AdamWOptions, type AdamWValues } from './adamw.js'
export { type ClipOptions, clipGradNorm } from './clip.js'
export { type DecayGroup, type DecayGroupsOptions, decayGroups } from './decay-groups.js'
export type { DeclaredOptimizer, GroupValues, OptimizerClass } from './declared.js'
export { EMA, type EMAOptions } from './ema.js'
export type { GivenMembers, GroupMembers, OptimizerParameters, ParameterGroup } from './groups.js'
export { Lion, type LionOptions, type LionValues } from './lion.js'
export { Optimizer, type ParameterState, type ParameterUpdate } from './optimizer.js'
export type { ReadOnlyOption } from './option-kinds.js'
export { PlateauSchedule, type PlateauScheduleOptions } from './plateau.js'
export { type LearningRate, Schedule, type ScheduledOptimizer, type ScheduleState, StepSchedule } from './schedule.js'
export {
  ConstantSchedule,
  type ConstantScheduleOptions,
  CosineSchedule,
  type DecayScheduleOptions,
  InverseSqrtSchedule,
  type InverseSqrtScheduleOptions,
  LinearSchedule,
} from './schedules.js'
export { SGD, type SGDOptions, type SGDValues } from './sgd.js'
export type { ShapedStateTensor, StateTensor, StateTensors, StateValues } from './state.js'
export type { StepOptions } from './step-options.js'
