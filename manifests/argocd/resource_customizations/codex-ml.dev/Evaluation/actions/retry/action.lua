-- The defaults of the schema are 3 and at most 100.
obj.spec.retries = (obj.spec.retries or 3) + 1
return obj
