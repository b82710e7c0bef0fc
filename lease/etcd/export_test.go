package etcd

// SetPageSize makes List read so many leases at once.
func (r *Registry) SetPageSize(n int64) { r.pageSize = n }
