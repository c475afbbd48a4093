local finished = obj.status ~= nil and obj.status.completedAt ~= nil
local suspended = obj.spec.suspend == true
local actions = {}
actions["suspend"] = { ["disabled"] = finished or suspended }
actions["resume"] = { ["disabled"] = finished or not suspended }
actions["retry"] = { ["disabled"] = finished or (obj.spec.retries or 3) >= 100 }
return actions
