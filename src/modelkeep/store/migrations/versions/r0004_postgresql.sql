CREATE TABLE holds (
	id BIGSERIAL NOT NULL,
	kind TEXT NOT NULL,
	name TEXT NOT NULL,
	reason TEXT DEFAULT '' NOT NULL,
	actor TEXT NOT NULL,
	since DOUBLE PRECISION NOT NULL,
	CONSTRAINT pk_holds PRIMARY KEY (id),
	CONSTRAINT uq_holds_kind_name UNIQUE (kind, name)
);
CREATE INDEX ix_holds_name ON holds (name);
CREATE TABLE imports (
	origin TEXT NOT NULL,
	kind TEXT NOT NULL,
	name TEXT NOT NULL,
	target TEXT NOT NULL,
	fingerprint TEXT DEFAULT '' NOT NULL,
	CONSTRAINT pk_imports PRIMARY KEY (origin, kind, name)
);
