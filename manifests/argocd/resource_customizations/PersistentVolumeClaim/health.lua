local phase = (obj.status or {}).phase or "Pending"
if phase == "Bound" then
  return { status = "Healthy", message = "the claim has a volume" }
end
if phase == "Lost" then
  return { status = "Degraded", message = "the volume of the claim no longer exists" }
end
-- The scheduler sets the annotation when it places the first pod that mounts the claim.
local node = (obj.metadata.annotations or {})["volume.kubernetes.io/selected-node"]
if node ~= nil then
  return { status = "Progressing", message = "a volume is being made for a pod on node " .. node }
end
return { status = "Healthy", message = "the claim waits for the first pod that mounts it" }
