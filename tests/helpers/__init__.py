"""Problems, stubs and measurements that tests share."""
