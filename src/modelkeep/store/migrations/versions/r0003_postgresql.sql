CREATE TABLE evaluation_datasets (
	id BIGSERIAL NOT NULL,
	dataset_id TEXT NOT NULL,
	name TEXT NOT NULL,
	digest TEXT NOT NULL,
	schema TEXT,
	records BIGINT DEFAULT '0' NOT NULL,
	created_by TEXT,
	updated_by TEXT,
	created_ms BIGINT NOT NULL,
	updated_ms BIGINT NOT NULL,
	CONSTRAINT pk_evaluation_datasets PRIMARY KEY (id),
	CONSTRAINT uq_evaluation_datasets_dataset_id UNIQUE (dataset_id)
);
CREATE INDEX ix_evaluation_datasets_name ON evaluation_datasets (name);
CREATE TABLE evaluation_experiments (
	dataset BIGINT NOT NULL,
	experiment BIGINT NOT NULL,
	CONSTRAINT pk_evaluation_experiments PRIMARY KEY (dataset, experiment),
	CONSTRAINT fk_evaluation_experiments_dataset FOREIGN KEY(dataset) REFERENCES evaluation_datasets (id) ON DELETE CASCADE,
	CONSTRAINT fk_evaluation_experiments_experiment FOREIGN KEY(experiment) REFERENCES experiments (id) ON DELETE CASCADE
);
CREATE INDEX ix_evaluation_experiments_experiment ON evaluation_experiments (experiment);
CREATE TABLE evaluation_records (
	id BIGSERIAL NOT NULL,
	dataset BIGINT NOT NULL,
	record_id TEXT NOT NULL,
	inputs_digest TEXT NOT NULL,
	content TEXT NOT NULL,
	created_by TEXT,
	updated_by TEXT,
	created_ms BIGINT NOT NULL,
	updated_ms BIGINT NOT NULL,
	CONSTRAINT pk_evaluation_records PRIMARY KEY (id),
	CONSTRAINT uq_evaluation_records_dataset_inputs_digest UNIQUE (dataset, inputs_digest),
	CONSTRAINT uq_evaluation_records_dataset_record_id UNIQUE (dataset, record_id),
	CONSTRAINT fk_evaluation_records_dataset FOREIGN KEY(dataset) REFERENCES evaluation_datasets (id) ON DELETE CASCADE
);
CREATE TABLE evaluation_tags (
	dataset BIGINT NOT NULL,
	key TEXT NOT NULL,
	value TEXT NOT NULL,
	CONSTRAINT pk_evaluation_tags PRIMARY KEY (dataset, key),
	CONSTRAINT fk_evaluation_tags_dataset FOREIGN KEY(dataset) REFERENCES evaluation_datasets (id) ON DELETE CASCADE
);
CREATE TABLE traces (
	id BIGSERIAL NOT NULL,
	trace_id TEXT NOT NULL,
	experiment BIGINT NOT NULL,
	name TEXT,
	status TEXT DEFAULT 'IN_PROGRESS' NOT NULL,
	start_ms BIGINT NOT NULL,
	duration_ms BIGINT,
	client_request_id TEXT,
	request_preview TEXT,
	response_preview TEXT,
	session TEXT,
	input_tokens BIGINT,
	output_tokens BIGINT,
	total_tokens BIGINT,
	cache_read_input_tokens BIGINT,
	cache_creation_input_tokens BIGINT,
	final SMALLINT DEFAULT '0' NOT NULL,
	CONSTRAINT pk_traces PRIMARY KEY (id),
	CONSTRAINT uq_traces_trace_id UNIQUE (trace_id),
	CONSTRAINT fk_traces_experiment FOREIGN KEY(experiment) REFERENCES experiments (id) ON DELETE CASCADE
);
CREATE INDEX ix_traces_recent ON traces (experiment, start_ms, trace_id);
CREATE INDEX ix_traces_session ON traces (experiment, session);
CREATE TABLE trace_artifacts (
	trace BIGINT NOT NULL,
	path TEXT NOT NULL,
	digest TEXT NOT NULL,
	size BIGINT NOT NULL,
	CONSTRAINT pk_trace_artifacts PRIMARY KEY (trace, path),
	CONSTRAINT fk_trace_artifacts_trace FOREIGN KEY(trace) REFERENCES traces (id) ON DELETE CASCADE
);
CREATE TABLE trace_assessments (
	id BIGSERIAL NOT NULL,
	trace BIGINT NOT NULL,
	assessment_id TEXT NOT NULL,
	kind TEXT NOT NULL,
	name TEXT NOT NULL,
	value TEXT NOT NULL,
	number DOUBLE PRECISION,
	numeric SMALLINT DEFAULT '0' NOT NULL,
	valid SMALLINT DEFAULT '1' NOT NULL,
	session TEXT,
	overrides TEXT DEFAULT '' NOT NULL,
	content TEXT NOT NULL,
	CONSTRAINT pk_trace_assessments PRIMARY KEY (id),
	CONSTRAINT uq_trace_assessments_trace_assessment_id UNIQUE (trace, assessment_id),
	CONSTRAINT fk_trace_assessments_trace FOREIGN KEY(trace) REFERENCES traces (id) ON DELETE CASCADE
);
CREATE INDEX ix_trace_assessments_name ON trace_assessments (kind, name, trace);
CREATE TABLE trace_links (
	trace BIGINT NOT NULL,
	kind TEXT NOT NULL,
	target TEXT NOT NULL,
	CONSTRAINT pk_trace_links PRIMARY KEY (trace, kind, target),
	CONSTRAINT fk_trace_links_trace FOREIGN KEY(trace) REFERENCES traces (id) ON DELETE CASCADE
);
CREATE INDEX ix_trace_links_target ON trace_links (kind, target, trace);
CREATE TABLE trace_metadata (
	trace BIGINT NOT NULL,
	key TEXT NOT NULL,
	value TEXT NOT NULL,
	CONSTRAINT pk_trace_metadata PRIMARY KEY (trace, key),
	CONSTRAINT fk_trace_metadata_trace FOREIGN KEY(trace) REFERENCES traces (id) ON DELETE CASCADE
);
CREATE INDEX ix_trace_metadata_search ON trace_metadata (key, substr(value, 1, 200), trace);
CREATE TABLE trace_spans (
	id BIGSERIAL NOT NULL,
	trace BIGINT NOT NULL,
	span_id TEXT NOT NULL,
	parent_id TEXT,
	name TEXT DEFAULT '' NOT NULL,
	type TEXT,
	status TEXT NOT NULL,
	start_ns BIGINT NOT NULL,
	end_ns BIGINT,
	model TEXT,
	provider TEXT,
	input_cost DOUBLE PRECISION,
	output_cost DOUBLE PRECISION,
	total_cost DOUBLE PRECISION,
	usage TEXT,
	cost TEXT,
	content TEXT NOT NULL,
	CONSTRAINT pk_trace_spans PRIMARY KEY (id),
	CONSTRAINT uq_trace_spans_trace_span_id UNIQUE (trace, span_id),
	CONSTRAINT fk_trace_spans_trace FOREIGN KEY(trace) REFERENCES traces (id) ON DELETE CASCADE
);
CREATE TABLE trace_tags (
	trace BIGINT NOT NULL,
	key TEXT NOT NULL,
	value TEXT NOT NULL,
	CONSTRAINT pk_trace_tags PRIMARY KEY (trace, key),
	CONSTRAINT fk_trace_tags_trace FOREIGN KEY(trace) REFERENCES traces (id) ON DELETE CASCADE
);
CREATE INDEX ix_trace_tags_search ON trace_tags (key, substr(value, 1, 200), trace);
