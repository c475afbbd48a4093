local health = { status = "Progressing", message = "the controller has not observed this generation yet" }
local status = obj.status or {}
if status.observedGeneration ~= obj.metadata.generation then
  return health
end
local conditions = {}
for _, condition in ipairs(status.conditions or {}) do
  conditions[condition.type] = condition
end
local ready, stalled, reconciling = conditions.Ready, conditions.Stalled, conditions.Reconciling
if stalled ~= nil and stalled.status == "True" then
  return { status = "Degraded", message = stalled.message }
end
if ready ~= nil and ready.status == "True" then
  return { status = "Healthy", message = ready.message }
end
if ready ~= nil and ready.reason == "Suspended" then
  return { status = "Suspended", message = ready.message }
end
if reconciling ~= nil and reconciling.status == "True" then
  health.message = reconciling.message
end
return health
